"""A small made-up result in the format of `compare`, with numbers chosen so that the derived ones are known."""

from __future__ import annotations

import copy
from typing import Any

import pytest

ROWS = [
    ("original", "original", None, 1000, 30, 1536, 9, 3, 2000, 10.0),
    ("depth 20%", "depth", "20%", 800, 24, 1536, 9, 3, 1600, 14.0),
    ("wanda-sp 20%", "wanda-sp", "20%", 801, 30, 1145, 9, 3, 1602, 120.0),
    ("wanda-sp 20%, padded", "wanda-sp padded", "20%", 805, 30, 1152, 9, 3, 1610, 120.0),
]

# Seconds of three runs at batch 1, hf; pyprune takes half, batch 8 takes four times as long.
SECONDS = {
    "original": [1.0, 1.1, 0.9],
    "depth 20%": [0.8, 0.88, 0.72],
    "wanda-sp 20%": [1.25, 1.1, 1.0],
    "wanda-sp 20%, padded": [0.8, 1.1, 1.0],
}


@pytest.fixture
def results() -> dict[str, Any]:
    rows = [
        {
            "name": name, "method": method, "ratio": ratio, "parameters": parameters,
            "removed_share": 1 - parameters / 1000, "blocks": blocks, "ffn_width": width, "heads": heads,
            "kv_heads": kv_heads, "bytes_per_token": size, "ppl": ppl, "pruning": None,
        }
        for name, method, ratio, parameters, blocks, width, heads, kv_heads, size, ppl in ROWS
    ]  # fmt: skip
    timings = [
        {
            "row": name, "engine": engine, "batch": batch, "output_tokens": 16,
            "seconds": [second * share * (4 if batch == 8 else 1) for second in seconds],
        }
        for batch in (1, 8)
        for engine, share in (("hf", 1.0), ("pyprune", 0.5))
        for name, seconds in SECONDS.items()
    ]  # fmt: skip
    fingerprint = {"sha256": "ab" * 32, "samples": 10, "seq_len": 128, "seed": 0, "source": "novels.txt"}
    machine = {
        "cpu": "Test CPU", "cpu_flags": ["avx2"], "cores": 2, "usable_cores": 2, "threads": 1, "memory_bytes": 2**34,
        "memory_limit_bytes": None, "system": "Linux 1", "architecture": "x86_64", "gpus": [], "python": "3.11.0",
        "versions": {"pyprune": "0.1.0", "torch": "2.13.0"}, "commit": None,
    }  # fmt: skip
    protocol = {
        "name": "quick", "input_tokens": 12, "output_tokens": [16], "warmups": 1, "runs": 3, "evaluation_tokens": 4096,
        "evaluation_window": 128,
    }  # fmt: skip
    return copy.deepcopy(
        {
            "format": "pyprune-comparison/1",
            "created": "2030-01-01T00:00:00+00:00",
            "command": "pyprune compare model --ratios 20%",
            "model": {"name": "model <b>&", "parameters": 1000, "blocks": 30},
            "settings": {"ratios": ["20%"], "batches": [1, 8], "dtype": "bfloat16", "pad_multiple": 64},
            "protocol": protocol,
            "calibration": fingerprint,
            "evaluation": {**fingerprint, "seed": None, "source": "wiki.txt"},
            "machine": machine,
            "scores": None,
            "rows": rows,
            "timings": timings,
        }
    )
