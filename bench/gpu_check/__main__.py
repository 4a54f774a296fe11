"""`python -m bench.gpu_check install correct fast --out DIR`; without a script's name it says what there is."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu_check.parts import BUDGETS, MODELS, Stage, expected_seconds, gpu_question, plan
from bench.gpu_check.resume import earlier, this_machine
from bench.gpu_check.runner import RESULT_FILE, Check
from bench.gpu_check.settings import ROOT, Settings
from bench.gpu_check.summary import summary
from pyprune.errors import InputError

LIMIT_S = 570.0
"""Of one call: half a minute less than the ten that a command may run."""


def main(argv: list[str] | None = None) -> int:
    """Run the scripts; 0 when they came to their end, whatever they found, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__, allow_abbrev=False)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"{', '.join(BUDGETS)}, in the order given")
    parser.add_argument("--out", metavar="DIR", help=f"where {RESULT_FILE} is written")
    parser.add_argument("--resume", nargs="+", default=[], metavar="FILE", help="results to go on from")
    parser.add_argument("--force-resume", action="store_true", help="even where they were made by other code")
    parser.add_argument("--model", default=MODELS[0], metavar="SIZE", help="for mission: 7b (default) or 13b")
    parser.add_argument("--weights", metavar="DIR", help="for correct: real weights, as bench.gpu_check.slice writes")
    parser.add_argument("--only", metavar="PART,...", help="these of the scripts' parts or groups, even if done")
    parser.add_argument("--dry-run", action="store_true", help="the same on a CPU in tiny sizes: tries this program")
    parser.add_argument("--seed", type=int, help="seed of the inputs and odd sizes (default: the file's, or a new one)")
    parser.add_argument("--commit", metavar="SHA", help="the commit under test, where the copy has no .git to tell it")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="S", help=f"seconds in all ({LIMIT_S:.0f})")
    options = parser.parse_args(argv)
    if not options.scripts:
        print(listing())
        return 0
    try:
        stages, repeated = _chosen(options)
        machine = this_machine(options.commit or _commit())
        earlier_results = earlier(options.resume, machine, options.dry_run, options.force_resume)
        seed = next((number for number in (options.seed, earlier_results.seed) if number is not None), None)
        seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        if not 0 <= seed < 2**31:
            raise InputError(f"--seed {seed}: 0 to {2**31 - 1} are expected")
        folder = _folder(options.out)
    except InputError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    weights = None if options.weights is None else str(Path(options.weights).resolve())
    # A request to end is an exception, so that the parts' processes are ended too.
    signal.signal(signal.SIGTERM, _leave)
    settings = Settings(kind="", out="", seed=seed, dry_run=options.dry_run, model=weights)
    gpu = (lambda: True) if options.dry_run else gpu_question()
    check = Check(folder, settings, options.limit, gpu, _tell, machine, earlier_results, repeated)
    print(summary(check.run(stages)))
    return 0


def listing() -> str:
    """The scripts, the seconds that each should take, and their parts."""
    lines = ["python -m bench.gpu_check SCRIPT ... --out DIR, with these scripts (seconds on an H100 or H200):"]
    for name in BUDGETS:
        stages = plan([name])
        names = "; ".join(", ".join(part.name for part in stage) for stage in stages)
        lines.append(f"  {name:8} {expected_seconds(stages):4.0f} s  {names}")
    return "\n".join([*lines, "First: install correct fast. Then: install mission sweep --resume THE FIRST'S FILE."])


def _chosen(options: argparse.Namespace) -> tuple[list[Stage], Sequence[str]]:
    if options.model not in MODELS:
        raise InputError(f"--model {options.model}: {' or '.join(MODELS)} is expected; real weights are --weights DIR")
    if options.weights is not None and not (Path(options.weights) / "config.json").is_file():
        raise InputError(f"--weights {options.weights}: has no config.json; a checkpoint's directory is expected")
    stages = plan(options.scripts, options.dry_run, options.model, options.weights)
    if options.only is None:
        return stages, ()
    names, accepted = (
        options.only.split(","),
        {name for stage in stages for part in stage for name in (part.name, part.group)},
    )
    for name in names:
        if name not in accepted:
            raise InputError(f"--only {name}: some of {', '.join(sorted(accepted))} are expected")
    kept = [[part for part in stage if {part.name, part.group} & set(names)] for stage in stages]
    return [stage for stage in kept if stage], names


def _folder(path: str | None) -> Path:
    if path is None:
        raise InputError("--out: a directory for the results is expected")
    target = Path(path).absolute()
    if (target / RESULT_FILE).exists() or (target.exists() and not target.is_dir()):
        raise InputError(f"--out {path}: is a file or has a {RESULT_FILE} already; another directory is expected")
    target.mkdir(parents=True, exist_ok=True)
    return target


def _commit() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    from pyprune.study.machine import commit  # it imports torch

    return commit(ROOT / "pyprune")


def _tell(line: str) -> None:
    print(line, flush=True)


def _leave(*_: Any) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
