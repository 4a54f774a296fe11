"""`make docs`: writes the generated pages, tables and figures. With --check it only says what is out of date."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench.pages import benchmarks, paper, readme, recovery, status
from bench.pages.prose import README, ROOT
from bench.pages.results import COMPARISON, RESULTS, read
from pyprune.study.cut_diagram import cut_svg
from pyprune.study.cuts import comparison_cuts
from pyprune.study.quality_plot import drawn, fingerprint
from pyprune.study.redraw import redraw

DOCS = ROOT / "docs"
CUT_ROWS = ("depth 20%", "flap 20%")
PLOTS = {DOCS / "figures" / f"quality-against-speed-{name}.svg": name == "dark" for name in ("light", "dark")}


def texts() -> dict[Path, str]:
    """Every generated text file as it should be."""
    of_recovery = recovery.page()
    return {
        **({DOCS / "recovery.md": of_recovery} if of_recovery else {}),
        DOCS / "benchmarks.md": benchmarks.page(),
        DOCS / "paper-on-smollm2.md": paper.page(),
        DOCS / "status.md": status.page(),
        README: readme.filled(README.read_text("utf-8")),
        DOCS / "figures" / "what-was-cut.svg": cuts(),
    }


def cuts() -> str:
    """What depth and width pruning cut, as `pyprune report` draws it, for two rows of the comparison."""
    drawn_cuts = {cut.name: cut for cut in comparison_cuts(read(COMPARISON), COMPARISON)}
    return cut_svg([drawn_cuts[name] for name in CUT_ROWS])


def out_of_date() -> list[Path]:
    """Generated files that differ from what the results give. A plot is known by the points it was drawn from, since
    its bytes depend on matplotlib's version."""
    old = [path for path, text in texts().items() if not path.exists() or path.read_text("utf-8") != text]
    points = fingerprint(drawn(read(COMPARISON)))
    return old + [path for path in PLOTS if not path.exists() or not re.search(points, path.read_text("utf-8"))]


def main(arguments: list[str]) -> int:
    """Write what is out of date, or with --check name it and exit with 1."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    old = out_of_date()
    for path in old:
        print(f"{path.relative_to(ROOT)}{': out of date; `make docs` writes it' if check else ''}")
        if not check and path in PLOTS:
            redraw([RESULTS / COMPARISON], path, dark=PLOTS[path])
        elif not check:
            path.write_text(texts()[path], encoding="utf-8")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
