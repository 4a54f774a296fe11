"""Help that matches the options, examples that can be pasted, and how the command line is started."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from pyprune.cli import build_parser
from tests.cli.command_line import run

COMMANDS = (
    "doctor", "score", "prune", "pad", "advise-width", "convert", "compare", "report", "sweep", "generate", "eval",
    "samples", "frontier", "recipe", "iterate", "repair", "retrain", "tune",
)  # fmt: skip


def parser_of(command: str) -> argparse.ArgumentParser:
    actions = build_parser()._subparsers._group_actions[0]
    return actions.choices[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_with_its_default(command):
    for action in parser_of(command)._actions:
        assert action.help, action.option_strings
        if action.option_strings and not isinstance(action, argparse._HelpAction):
            assert "default" in action.help or "required" in action.help or (command == "prune" and not action.required)
        if action.default not in (None, argparse.SUPPRESS, False, []):
            shown = action.default if not isinstance(action.default, list) else ",".join(map(str, action.default))
            shown = f"{shown:g}" if isinstance(shown, float) else str(shown)
            assert f"(default: {shown})" in action.help % {"default": action.default}, action.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_each_command_can_be_pasted(command):
    examples = [line.strip() for line in parser_of(command).epilog.splitlines()[1:]]
    assert len(examples) >= 2
    for example in examples:
        program, *words = shlex.split(example)
        if program == "torchrun":
            program, *words = words[words.index("-m") + 1 :]
        assert program == "pyprune"
        assert build_parser().parse_args(words).command == command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does_and_exits_0(command, capsys):
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert len(parser_of(command).description.split()) > 25
    assert "Examples:" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_output(command):
    assert any("--json" in action.option_strings for action in parser_of(command)._actions)


def test_the_protocols_in_the_help_are_the_protocols():
    from pyprune.study.protocols import PROTOCOLS

    action = next(action for action in parser_of("compare")._actions if action.dest == "protocol")
    assert tuple(action.choices) == tuple(PROTOCOLS)
    for protocol in PROTOCOLS.values():
        assert " and ".join(map(str, protocol.output_tokens)) + " new tokens" in action.help
        assert f"perplexity on {protocol.evaluation_tokens} tokens" in action.help
        assert re.search(rf"{protocol.runs} runs after {protocol.warmups}\b", action.help)


def test_help_imports_neither_torch_nor_transformers():
    probe = (
        "import sys; from pyprune.cli import main; code = main(['compare', '--help']);"
        "sys.exit(code or ' '.join({'torch', 'transformers', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_loading_and_scoring_import_no_compiler_that_torch_and_transformers_do_not():
    """torch.compile's tracer takes as long to import as torch itself."""
    probe = (
        "import sys, torch, transformers;"
        "before = 'torch._dynamo' in sys.modules; import pyprune;"
        "model = pyprune.load('shape:hidden=8,blocks=2,heads=2,kv_heads=1,head_dim=4,ffn=8,vocab=16');"
        "pyprune.score(model, torch.zeros(1, 4, dtype=torch.int64));"
        "sys.exit(not before and 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_dash_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "pyprune", "score"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "pyprune: score: the following arguments are required: MODEL\n"


def test_the_width_methods_in_the_help_are_the_width_methods():
    from pyprune.commands.options import WIDTH_METHODS
    from pyprune.pruning.width import METHODS

    assert WIDTH_METHODS.split(", ") == list(METHODS)
    for command, option in (("compare", "methods"), ("prune", "method")):
        action = next(action for action in parser_of(command)._actions if action.dest == option)
        assert WIDTH_METHODS in action.help


def test_the_defaults_of_compare_are_those_of_its_configuration():
    from pyprune.study.config import CompareConfig

    assert CompareConfig.from_options(build_parser().parse_args(["compare", "shape:tiny"])) == CompareConfig()


def test_what_the_options_repeat_without_importing_torch_is_what_the_functions_take():
    from pyprune.commands.options import WIDTH_ROWS
    from pyprune.evaluation.protocol import JOINS, PROTOCOLS
    from pyprune.scoring.calibration import BOS_RULES, PACKINGS
    from pyprune.study.width_advice import ROWS

    assert tuple(WIDTH_ROWS) == ROWS
    choices = {action.dest: action.choices for action in parser_of("score")._actions}
    assert (choices["packing"], choices["bos"]) == (PACKINGS, BOS_RULES)
    choices = {action.dest: action.choices for action in parser_of("eval")._actions}
    assert (choices["join"], choices["bos"], choices["protocol"]) == (JOINS, BOS_RULES, tuple(PROTOCOLS))


def test_the_defaults_of_samples_are_those_of_its_function():
    import inspect

    from pyprune import samples

    options = vars(build_parser().parse_args(["samples", "shape:tiny"]))
    for name in ("draws", "max_new_tokens", "top_k", "top_p", "temperature", "seed"):
        assert options[name] == inspect.signature(samples).parameters[name].default
