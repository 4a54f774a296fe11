"""Part: the CPU kernels with every instruction set that this host has; some are seen nowhere else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench.gpu_check.settings import ROOT, Save, Settings
from pyprune.ops import native
from pyprune.ops.self_check.cases import cases
from pyprune.ops.self_check.judgement import DTYPES, check, count

DRY_FILE = "test_loss.py"


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """`pytest tests/ops`, whose tests go through the instruction sets themselves; a loop of our own without pytest."""
    result: dict[str, Any] = {"native": native.report(), "isas": native.runnable_isas()}
    save(result)
    if importlib.util.find_spec("pytest") is None:
        return {**result, "with": "own loop, for want of pytest", **own_loop(settings)}
    files = sorted(path.name for path in (ROOT / "tests" / "ops").glob("test_*.py"))
    result.update({"with": "pytest tests/ops", "files": [], "passed": 0, "failed": 0, "skipped": 0, "failures": []})
    for name in [DRY_FILE] if settings.dry_run else files:  # one after the other: what is done stands
        told = pytest_run(f"tests/ops/{name}")
        result["files"].append(name)
        result.update({key: result[key] + value for key, value in told.items()})
        save(result)
    return result


def pytest_run(tests: str) -> dict[str, Any]:
    """Counts, and the name and text of each test that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", tests, "-q", "-p", "no:cacheprovider", "-o", "addopts="]
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", str(max(1, min(4, (os.cpu_count() or 1) // 4)))]
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr)
        sys.stdout.write(done.stdout.decode(errors="replace"))
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and wrote no report")
        found = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [(case, kind) for case in found for kind in case if kind.tag in ("failure", "error")]
    skipped = sum(kind.tag == "skipped" for case in found for kind in case)
    failures = [
        {"test": f"{case.get('classname')}::{case.get('name')}", "text": (kind.get("message") or "")[:1000]}
        for case, kind in bad
    ]
    return {"passed": len(found) - len(bad) - skipped, "failed": len(bad), "skipped": skipped, "failures": failures}


def own_loop(settings: Settings) -> dict[str, Any]:
    """The GPU check's own small cases, on the CPU, under each instruction set."""
    import torch

    before, done = native.selected_isa(), []
    for isa in native.runnable_isas():
        native.select_isa(isa)
        for case in cases(settings.seed, "tiny" if settings.dry_run else "small"):
            for dtype in DTYPES:
                told = check(case, getattr(torch, dtype), "cpu", settings.seed)
                done.append({**told, "isa": isa})
    if before is not None:
        native.select_isa(before)
    return {**count(done), "skipped": 0, "failures": [case for case in done if not case["passed"]]}
