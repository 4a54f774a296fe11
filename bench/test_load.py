"""Loading quantised GGUF files in bfloat16: ours, the `gguf` package's way, and llama.cpp where it is installed.

Each load has a process of its own, in interleaved rounds; its seconds and its peak of resident memory are those that
bench/loading.py tells, and pytest-benchmark's are the whole process's. The file is in the system's cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from bench.loading import WAYS, absent
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune.models.demo import demo_model_path
from pyprune.study.measure import speedup, spread
from tests.models.gguf_random import QWEN2_1B5, write_random_qwen2


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "qwen2-1.5b-q4_k_m.gguf"
    write_random_qwen2(path, QWEN2_1B5)
    yield path
    path.unlink()


def _load(path: Path, how: str, results: list[dict[str, float]]) -> None:
    command = [sys.executable, "-m", "bench.loading", str(path), "--how", how, "--dtype", "bf16"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    results.append(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("model", ["smollm2", "qwen2-1.5b"])
def test_loading_a_quantised_gguf_file_as_bf16(interleaved, benchmark, table, request, model: str):
    path = demo_model_path() if model == "smollm2" else request.getfixturevalue("qwen2")
    path.read_bytes()  # into the system's cache
    results: dict[str, list[dict[str, float]]] = {how: [] for how in WAYS if not absent(how)}
    sides = {how: Side(partial(_load, path, how, samples)) for how, samples in results.items()}
    interleaved(sides, 5, warmups=0)
    weights = results["pyprune"][0]["weights"]
    seconds = {how: [sample["seconds"] for sample in samples] for how, samples in results.items()}
    peaks = {how: median(sample["peak"] for sample in samples) for how, samples in results.items()}
    benchmark.extra_info.update(
        file_bytes=path.stat().st_size,
        weights_bytes=weights,
        loads=results,
        load_spread={how: spread(samples) for how, samples in seconds.items()},
        peak_over_weights={how: peak / weights for how, peak in peaks.items()},
    )
    for how in WAYS:
        if how not in results:
            row = {"way": how, "seconds": "absent", "peak, MB": "", "peak over bf16 weights": "", FASTER: ""}
        else:
            ratio = speedup(seconds[how], seconds["pyprune"])
            row = {
                "way": how,
                "seconds": f"{median(seconds[how]):.2f}",
                "peak, MB": f"{peaks[how] / 1e6:.0f}",
                "peak over bf16 weights": f"{peaks[how] / weights:.2f}",
                FASTER: "" if how == "pyprune" else interval_text(ratio),
            }
        table(f"loading {model} ({path.stat().st_size / 1e6:.0f} MB) as bf16", row)
