r"""What a model and its engine really take on this machine, beside what the planner says: one line of JSON.

    MALLOC_MMAP_THRESHOLD_=65536 ONEDNN_PRIMITIVE_CACHE_CAPACITY=0 \
        python tests/runtime/measure_memory.py smollm2-135m --batch 16 --len 512

Run it in a process of its own: bytes are the growth of its resident memory (Linux). With those variables
glibc hands freed tensors back at once and oneDNN forgets the code that it compiled (about 7 MB); else both keep some,
which counts as resident too.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch

import pyprune

WARM_UP = "shape:hidden=64,blocks=1,heads=2,kv_heads=2,head_dim=32,ffn=80,vocab=500"
NEW_TOKENS = 4


def resident(field: str) -> int:
    """VmRSS, or VmHWM (the most so far), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(
    spec: str, dtype: str | None, batch: int, length: int, skip: list[int], weight_format: str | None = None
) -> dict[str, int | float]:
    """Load, generate up to the full length, and compare the most that was resident with the plan."""
    # The libraries' own memory is not the model's: have it there before the count begins, the GEMM of each dtype too.
    for kind in {"bf16", dtype or "bf16"}:
        warm = pyprune.load(WARM_UP, kind)
        pyprune.Engine(warm, max_batch=4, max_len=100).generate(torch.zeros(4, 90, dtype=torch.long), max_new_tokens=2)
    if not spec.startswith("shape:"):
        import gguf  # noqa: F401
    plan = pyprune.plan_memory(spec, batch, length, dtype, skip, weight_format)
    gc.collect()
    process = resident("VmRSS")

    decoder = pyprune.load(spec, dtype)
    gc.collect()
    loaded = resident("VmRSS")
    vocabulary = decoder.vocab_size
    # Making it hands back what loading left.
    engine = pyprune.Engine(decoder, max_batch=batch, max_len=length, weight_format=weight_format)
    del decoder
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew: loading is not what is measured
    prompt = torch.randint(0, vocabulary, (batch, length - NEW_TOKENS + 1))
    engine.generate(prompt, max_new_tokens=NEW_TOKENS, skip=skip)
    most = resident("VmHWM") - process
    planned = plan.total - plan.untouched
    return {
        "process": process,
        "weights": loaded - process,
        "most": most,
        "planned_weights": plan.weights,
        "planned_cache": plan.cache - plan.untouched,
        "planned_workspace": plan.workspace,
        "planned": planned,
        "plan_by_measured": planned / most,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--len", type=int, default=512)
    parser.add_argument("--skip", type=int, nargs="*", default=[])
    parser.add_argument("--weight-format")
    options = parser.parse_args()
    words = (options.model, options.dtype, options.batch, options.len, options.skip, options.weight_format)
    print(json.dumps(measure(*words)))
