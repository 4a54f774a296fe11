"""`python -m bench.gpu_check --out DIR [--dry-run] [--model DIR] [--only PART,...]`."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from pathlib import Path
from typing import Any

from bench.gpu_check.parts import chosen, groups, has_gpu
from bench.gpu_check.runner import RESULT_FILE, Check
from bench.gpu_check.settings import Settings
from bench.gpu_check.summary import summary
from pyprune.errors import InputError

LIMIT_S = 535.0


def main(argv: list[str] | None = None) -> int:
    """Run the check; 0 when it came to its end, whatever it found, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, metavar="DIR", help=f"where {RESULT_FILE} is written")
    parser.add_argument("--dry-run", action="store_true", help="the same on a CPU in tiny sizes: tries this program")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint with real weights, as bench.gpu_check.slice makes")
    parser.add_argument("--only", metavar="PART,...", help=f"some of {','.join(groups())}, or of their parts")
    parser.add_argument("--seed", type=int, help="seed of the operators' inputs and odd sizes (default: a new one)")
    parser.add_argument("--commit", metavar="SHA", help="the commit under test, where the copy has no .git to tell it")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help="seconds in all (default: 535)")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    try:
        stages = chosen(options.only and options.only.split(","), options.dry_run, options.model)
        folder = _folder(options.out)
        if not 0 <= seed < 2**31:
            raise InputError(f"--seed {seed}: 0 to {2**31 - 1} are expected")
        if options.model is not None and not (Path(options.model) / "config.json").is_file():
            raise InputError(f"--model {options.model}: has no config.json; a checkpoint's directory is expected")
    except InputError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    model = None if options.model is None else str(Path(options.model).resolve())
    # A request to end is an exception, so that the parts' processes are ended too.
    signal.signal(signal.SIGTERM, _leave)
    settings = Settings(kind="", out="", seed=seed, dry_run=options.dry_run, model=model)
    check = Check(folder, settings, options.limit, gpu=options.dry_run or has_gpu(), tell=_tell)
    check.results["commit"] = options.commit
    results = check.run(stages)
    print(summary(results))
    return 0


def _folder(path: str) -> Path:
    target = Path(path).absolute()
    if (target / RESULT_FILE).exists() or (target.exists() and not target.is_dir()):
        raise InputError(f"--out {path}: is a file or has a {RESULT_FILE} already; another directory is expected")
    target.mkdir(parents=True, exist_ok=True)
    return target


def _tell(line: str) -> None:
    print(line, flush=True)


def _leave(*_: Any) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
