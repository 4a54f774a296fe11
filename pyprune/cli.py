"""The command line: the parser of all commands, their exit codes, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from pyprune.commands import COMMANDS
from pyprune.commands.options import Parser, examples
from pyprune.errors import InputError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0 done, 1 failure, 2 bad input, 130 interrupted.

    An error is one line on stderr, with the traceback before it under --debug.
    """
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        options = build_parser().parse_args(argv)
        if options.command is None:
            raise InputError(f"no command: {', '.join(COMMANDS)} or --help is expected")
        COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return DONE
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _stopped("interrupted", INTERRUPTED, debug)
    except InputError as error:
        return _stopped(str(error), BAD_INPUT, debug)
    except BrokenPipeError:
        # The reader, head or less, has left; nothing may be written to stdout any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _stopped(_reason(error), FAILED, debug)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Nothing heavy is imported here, so that --help answers at once."""
    parser = Parser(
        prog="pyprune",
        description="Structured pruning of LLaMA-style language models, by depth and by width: score blocks, prune, "
        "repair and retrain, measure quality and speed, and generate text with blocks skipped.",
        epilog=examples("pyprune doctor", "pyprune compare smollm2-135m --ratios 20% --out compare-135m")
        + "\n\nExit codes: 0 done, 1 failure, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=_version(), help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS.values():
        command.add_options(commands)
    return parser


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" for {error.filename}" if error.filename else ""
        return f"the disk is full: no space left{where}; nothing half-written was kept"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _stopped(message: str, code: int, debug: bool) -> int:
    if debug and code != INTERRUPTED:
        traceback.print_exc()
    line = " ".join(message.split())
    hint = "" if debug or code != FAILED else " (--debug shows the traceback)"
    print(f"pyprune: {line}{hint}", file=sys.stderr)
    return code


def _version() -> str:
    import importlib.metadata

    try:
        return f"pyprune {importlib.metadata.version('pyprune')}"
    except importlib.metadata.PackageNotFoundError:
        return "pyprune, not installed"


if __name__ == "__main__":
    sys.exit(main())
