"""What the commands share: the parser, the values that options take, and groups of options. Nothing heavy is here."""

from __future__ import annotations

import argparse
import re
import textwrap
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from pyprune.errors import InputError
from pyprune.study.config import CalibrationConfig, options_of

DTYPES = {
    "float32": "float32", "fp32": "float32", "f32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "f16": "float16",
}  # fmt: skip

UNITS = ("block", "mha", "ffn", "mha+ffn")

MOST = 2**31 - 1
"""The greatest whole number that an option takes, unless it says otherwise."""

MODEL_HELP = (
    "the model: a Hugging Face directory or hub name, a .gguf file, smollm2-135m (the installed demonstration model), "
    "or shape:NAME (random weights, no tokenizer)"
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, so that they too are one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        if self.description is not None:
            self.description = textwrap.fill(self.description, 78)
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error (default: off)",
        )

        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.removeprefix('pyprune').strip() or 'command line'}: {message}")


def refuse_ignored(options: argparse.Namespace, reason: str, *names: str) -> None:
    """InputError for each of these options that is not at its default, for it would be ignored."""
    for name in names:
        value = getattr(options, name)
        if value != options.parser.get_default(name):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            raise InputError(f"--{name.replace('_', '-')}{'' if value is True else f' {text}'}: {reason}")


def command(commands: Any, name: str, summary: str, about: str, *lines: str) -> argparse.ArgumentParser:
    """The parser of a new command: a line for the list, what it does, and examples, one a line."""
    return commands.add_parser(name, help=summary, description=about, epilog=examples(*lines))


def add_option(
    parser: argparse._ActionsContainer, name: str, about: str, default: Any = None, shown: str = "none", **settings: Any
) -> None:
    """An option whose help ends with its default; `shown`: what stands there where that is None."""
    text = shown if default is None else ",".join(map(str, default)) if isinstance(default, list) else str(default)
    parser.add_argument(name, default=default, help=f"{about} (default: {text.replace('%', '%%')})", **settings)


def add_option_of(
    parser: argparse._ActionsContainer, config: type, field: str, about: str, shown: str = "none", **settings: Any
) -> None:
    """The option of a configuration's field, with the configuration's default."""
    default = getattr(config, field)
    default = list(default) if isinstance(default, tuple) else default
    add_option(parser, options_of(config)[field], about, default, shown, **settings)


def add_unit(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--unit", choices=UNITS, help=f"{about} (default: block)")


def add_amount(parser: argparse.ArgumentParser, about: str) -> None:
    """--count and --ratio: a choice that is looked at, not made."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--count",
        type=at_least(1),
        metavar="N",
        help=f"the N most removable units, {about} (default: none)",
    )
    ways.add_argument(
        "--ratio",
        type=share,
        metavar="P%",
        help="the same as a share: the number nearest to P%% of all parameters (default: 20%% when comparing)",
    )


class _OldName(argparse.Action):
    """--compress, the old name of --weight-format bf16-lossless12."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        warnings.warn(f"{self.option_strings[0]} is now --weight-format {self.const}", DeprecationWarning, stacklevel=2)
        setattr(namespace, self.dest, self.const)


def add_weight_format(parser: argparse.ArgumentParser) -> None:
    """--weight-format: how the engine stores its weights."""
    parser.add_argument(
        "--weight-format",
        metavar="FORMAT",
        help="how the engine stores weights: bf16, or on CPUs bf16-lossless12 (bfloat16 in 12 bits without loss, "
        "faster for small batches with AVX-512) (default: the model's dtype)",
    )
    parser.add_argument(
        "--compress",
        dest="weight_format",
        action=_OldName,
        nargs=0,
        const="bf16-lossless12",
        help="old name of --weight-format bf16-lossless12 (default: off)",
    )


def add_skip(parser: argparse.ArgumentParser) -> None:
    for name, what in (("skip", "whole blocks"), ("skip-mha", "attention sublayers"), ("skip-ffn", "FFN sublayers")):
        parser.add_argument(
            f"--{name}",
            type=indices,
            action="extend",
            default=[],
            metavar="I,J",
            help=f"{what} to skip, numbered from 0; may be repeated (default: none)",
        )


TEXT_OPTIONS = ("text", "field", "samples", "seq_len", "seed", "packing", "bos")
"""The options of `add_text`."""


def add_text(
    parser: argparse.ArgumentParser,
    text: str = "demo:lambada",
    samples: int | None = CalibrationConfig.samples,
    shown: str = "",
) -> None:
    """The options of `CalibrationConfig`, with these defaults of --text and --samples; `shown`: what the help says of
    --samples where that is None."""
    add_option_of(
        parser,
        CalibrationConfig,
        "text",
        "calibration text: a UTF-8 file, JSON lines (.jsonl, .jsonl.gz), hf:NAME[:CONFIG][:SPLIT], demo:lambada, "
        "demo:boolq, demo:passages, demo:sms, or token ids (.npy, .safetensors)",
        shown=f"{text}; for shape: models random ids",
        metavar="FILE",
    )
    add_option_of(
        parser,
        CalibrationConfig,
        "field",
        "the JSON field or dataset column that holds the text",
        shown="text",
        metavar="NAME",
    )
    add_option(parser, "--samples", "calibration windows", samples, shown, type=at_least(1), metavar="S")
    windows = (
        ("seq_len", at_least(2), "T", "tokens in each window"),
        ("seed", at_least(0), "N", "seed for drawing the windows"),
    )
    for field, kind, metavar, about in windows:
        add_option_of(parser, CalibrationConfig, field, about, type=kind, metavar=metavar)
    add_option_of(
        parser,
        CalibrationConfig,
        "packing",
        "packed: all documents in a row, cut into windows; documents: a random window from each of S documents that "
        "are long enough",
        choices=("packed", "documents"),
    )
    add_option_of(
        parser,
        CalibrationConfig,
        "bos",
        "beginning-of-sequence token: none, one before the whole text, or one in each window",
        choices=("none", "first", "each"),
    )


def add_rows(parser: argparse.ArgumentParser, default: list[int], about: str) -> None:
    """--rows: rows of activations of a linear."""
    add_option(parser, "--rows", about, default, type=numbers("numbers of rows", "1,16,1024"), metavar="M,N")


def add_hidden(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "--hidden", "hidden size", 4096, type=at_least(1), metavar="H")


def add_stored_dtype(parser: argparse.ArgumentParser, about: str) -> None:
    """--dtype, where the checkpoint's own is kept unless said otherwise."""
    add_dtype(parser, None, f"{about} (default: the checkpoint's own)")


SCORED_DTYPE = "dtype of the weights when scored; activations are float32 on a CPU"
WIDTH_ROWS = [1, 16, 1024]
"""Rows of activations by which the width of an FFN is advised."""
SEARCHES = ("one-shot", "greedy", "window")
WIDTH_METHODS = "wanda-sp, flap, llm-pruner, magnitude-sp, head-gate"
"""`pruning.width.METHODS`, which would import torch; a test holds them equal."""


def add_dtype(parser: argparse.ArgumentParser, default: str | None, about: str) -> None:
    shown = about if default is None else f"{about} (default: {default})"
    parser.add_argument("--dtype", type=dtype, default=default, metavar="D", help=f"fp32, bf16 or fp16: {shown}")


def add_device(parser: argparse.ArgumentParser, default: str = "cpu") -> None:
    add_option(parser, "--device", "where to run: cpu, cuda or cuda:N", default, type=device, metavar="D")


def add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="memory limit beyond the weights, such as 800MB or 2GiB; work is split to fit, with the same result "
        "(default: all free memory)",
    )


def add_stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read each block's weights only when it runs, for models larger than memory; needs a Hugging Face "
        "directory or name (default: off)",
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep finished work in a journal beside --out, and resume an interrupted run from it (default: off)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables (default: off)")


def examples(*examples: str) -> str:
    return "Examples:\n" + "\n".join(f"  {example}" for example in examples)


def dtype(text: str) -> str:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: {', '.join(DTYPES)} are accepted")
    return DTYPES[text]


def device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: cpu, cuda or cuda:N, such as cuda:0, is accepted")
    return text


def share(text: str) -> float:
    from pyprune.pruning.amount import parse_ratio

    try:
        return parse_ratio(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str) -> int:
    """A number of bytes from one like 800MB, 2GiB or 1500000."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kMGT]?)(i?)B?", text, re.ASCII)
    if match is None or (match[3] and not match[2]) or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a size such as 800MB or 2GiB is expected")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " "))


def comma_separated(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def indices(text: str) -> list[int]:
    if not all(word.isascii() and word.isdigit() for word in comma_separated(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: block indices from 0, with commas, such as 10,11 are expected")
    return [int(word) for word in comma_separated(text)]


def numbers(what: str, example: str) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        if not all(word.isascii() and word.isdigit() for word in comma_separated(text)):
            raise argparse.ArgumentTypeError(f"{text!r}: {what} from 1, with commas, such as {example} are expected")
        return [int(word) for word in comma_separated(text)]

    return read


def at_least(least: int, most: int = MOST) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: an integer from {least} to {most} is expected")
        return int(text)

    return read


def number(low: float, high: float | None) -> Callable[[str], float]:
    """A finite number from `low`, or above `low` and up to `high` where there is one."""
    most = "" if high is None else f"{high:,.0f}" if high == int(high) else f"{high:g}"
    expected = f"a number of at least {low:g}" if high is None else f"a number above {low:g} and at most {most}"

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
