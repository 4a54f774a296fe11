"""`pyprune eval`: a model's quality on a text and on tasks."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import (
    chosen_device,
    init_distributed,
    journal_beside,
    quiet_transformers,
    remove_journal,
    torch_dtype,
)
from pyprune.commands.options import (
    MODEL_HELP,
    SCORED_DTYPE,
    add_device,
    add_json,
    add_memory,
    add_option,
    add_resume,
    add_stored_dtype,
    add_stream,
    at_least,
    comma_separated,
    command,
)
from pyprune.commands.output import Bar, is_rank_zero, print_json, print_table
from pyprune.errors import InputError

PROTOCOL_OPTIONS = ("window", "stride", "join", "bos")


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "eval",
        "measure a model's perplexity on a text and its accuracy on tasks",
        "Measure perplexity on a text (--ppl), accuracy on tasks (--tasks), or both. Perplexity comes with its "
        "standard error and with bits per byte, which compare models with different tokenizers. --protocol paper takes "
        "perplexity as the code of Shortened LLaMA does; --window, --stride, --join and --bos override parts of it.",
        "pyprune eval smollm2-135m --ppl demo:sms --tokens 4096",
        "pyprune eval pruned-135m --ppl wikitext2 --protocol paper --out wikitext2.json --resume",
        "pyprune eval smollm2-135m --ppl novel.txt --window full --stride 512 --bos none --json",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_option(
        parser,
        "--ppl",
        "text for the perplexity: a UTF-8 file, JSON lines (.jsonl, .jsonl.gz), wikitext2 (raw, test) or ptb "
        "(validation) from the Hugging Face hub, hf:NAME[@REVISION][:CONFIG][:SPLIT], demo:lambada, demo:boolq, "
        "demo:passages, demo:sms, or token ids (.npy, .safetensors)",
        metavar="TEXT",
    )
    add_option(parser, "--field", "field of JSON lines or of a dataset that holds the text", shown="text",
               metavar="NAME")  # fmt: skip
    add_option(
        parser,
        "--protocol",
        "paper: rows joined by blank lines, windows of 128 tokens, one BOS token before the text; the options below "
        "override it",
        choices=("paper",),
    )
    add_option(parser, "--window", "tokens in each window, its BOS token included; full: the model's context",
               shown="128", type=_window, metavar="N")  # fmt: skip
    add_option(
        parser,
        "--stride",
        "start each window N tokens after the one before; every token counts once, with the tokens before it as "
        "context",
        shown="no overlap, and a partial last window is dropped",
        type=at_least(1),
        metavar="N",
    )
    add_option(
        parser,
        "--join",
        "raw: a file as it is, a blank line between documents; rows: a blank line between all rows, and blank rows "
        "are kept",
        shown="raw",
        choices=("raw", "rows"),
    )
    add_option(
        parser,
        "--bos",
        "beginning-of-sequence token: none; first: before all of the text, if the tokenizer has one; each: at the "
        "start of every window",
        shown="first",
        choices=("none", "first", "each"),
    )
    add_option(parser, "--tokens", "read only the first N tokens of the text", shown="all",
               type=at_least(2), metavar="N")  # fmt: skip
    add_option(
        parser,
        "--tasks",
        "lm-eval tasks, or paper for the paper's seven: measure accuracy on them",
        type=comma_separated,
        metavar="NAME,NAME",
    )
    add_option(parser, "--limit", "use the first N documents of each task", shown="all", type=at_least(1), metavar="N")
    add_option(parser, "--data", "directory with the tasks' data", shown="installed packages, else the hub",
               metavar="DIR")  # fmt: skip
    add_option(parser, "--log-samples", "JSON lines of every document's requests and answers; an existing file is "
               "replaced", metavar="FILE")  # fmt: skip
    add_stored_dtype(parser, SCORED_DTYPE)
    add_device(parser)
    add_option(parser, "--out", "JSON file for the result; an existing one is replaced", metavar="FILE")
    add_memory(parser)
    add_stream(parser)
    add_resume(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure a model's perplexity on a text and its accuracy on tasks."""
    check_options(options)
    from pyprune.evaluation import evaluate
    from pyprune.evaluation.protocol import PROTOCOLS, PerplexityProtocol
    from pyprune.evaluation.tasks import tasks_journal

    protocol = PerplexityProtocol() if options.protocol is None else PROTOCOLS[options.protocol]
    chosen = {name: getattr(options, name) for name in PROTOCOL_OPTIONS if getattr(options, name) is not None}
    device, journal = chosen_device(options), journal_beside(options)
    init_distributed(device)
    quiet_transformers()
    with Bar() as bar:
        evaluation = evaluate(
            options.model,
            options.ppl,
            options.tasks,
            options.limit,
            options.data,
            **{**protocol.to_dict(), **chosen},
            tokens=options.tokens,
            field=options.field,
            log_samples=options.log_samples,
            dtype=None if options.dtype is None else torch_dtype(options.dtype),
            device=device,
            stream=options.stream,
            memory=options.memory,
            resume=journal,
            progress=bar,
        )
    if not is_rank_zero():
        return None
    if options.out is not None:
        evaluation.to_json(options.out)
        remove_journal(options)
        if journal is not None:
            tasks_journal(journal).unlink(missing_ok=True)
    if options.json:
        return print_json(evaluation.to_dict())
    print_evaluation(evaluation)


def check_options(options: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together, and for files that cannot be written."""
    from pyprune.study.destination import require_file

    if options.ppl is None and options.tasks is None:
        raise InputError("eval: nothing to measure; --ppl TEXT or --tasks NAMES is expected")
    if options.tasks is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"--tasks: torchrun started {os.environ['WORLD_SIZE']} processes; tasks run in one")
    belongs = {"ppl": ("protocol", *PROTOCOL_OPTIONS, "tokens", "field"), "tasks": ("limit", "data", "log_samples")}
    for what, names in belongs.items():
        for name in names:
            if getattr(options, what) is None and getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')} {getattr(options, name)}"
                raise InputError(f"{option}: belongs to --{what}, which was not given")
    if options.out is not None:
        require_file(options.out)
    if options.log_samples is not None:
        require_file(options.log_samples)
    journal_beside(options)


def print_evaluation(evaluation: Any) -> None:
    """The result as tables."""
    if evaluation.perplexity is not None:
        text = evaluation.text
        error = "" if evaluation.stderr is None else f" +- {evaluation.stderr:.4f}"
        windows = f"{text['windows']} of {text['window']} tokens"
        windows += "" if text["stride"] is None else f", every {text['stride']}"
        facts = [
            ["perplexity", f"{evaluation.perplexity:.4f}{error}"],
            ["bits per byte", "none: token ids" if evaluation.bits_per_byte is None else
             f"{evaluation.bits_per_byte:.4f}"],
            ["text", text["source"]],
            ["windows", windows],
            ["tokens that count", str(text["tokens"])],
            ["rows", text["join"]],
            ["BOS", text["bos"]],
        ]  # fmt: skip
        print_table(["", ""], facts, f"{evaluation.model}, {evaluation.dtype}: perplexity")
    if evaluation.tasks:
        print_tasks(evaluation)


def print_tasks(evaluation: Any) -> None:
    """Both metrics of each task with their standard errors, the documents and the split; and the paper's average."""
    heads = ["task", "acc", "+-", "acc_norm", "+-", "documents", "split"]
    keys = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
    rows = [
        [name, *("" if row[key] is None else f"{row[key]:.4f}" for key in keys), str(row["documents"]), row["split"]]
        for name, row in evaluation.tasks.items()
    ]
    print_table(heads, rows, f"{evaluation.model}, {evaluation.dtype}: tasks")
    for name, row in evaluation.tasks.items():  # those with metrics of their own
        others = {key: value for key, value in row.items() if key not in (*keys, "documents", "split", "source")}
        if any(value is not None for value in others.values()):
            print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in others.items() if value is not None))
    if evaluation.average is not None:
        value, stderr, mix = (evaluation.average[key] for key in ("value", "stderr", "mix"))
        print(f"average {value:.4f}" + ("" if stderr is None else f" +- {stderr:.4f}") + f": {mix}")


def _window(text: str) -> int | str:
    return text if text == "full" else at_least(2)(text)
