"""Peak memory of LoRA training with and without a teacher on this machine, as JSON.

    MALLOC_MMAP_THRESHOLD_=65536 python -m bench.distillation_memory smollm2-135m --ratio 20%

Each training has a process of its own. Bytes, of each loss, are the growth of its resident memory (Linux) from before
the models are loaded to the peak. `ratio` is (distillation - teacher's weights) / plain: what the limit of 1.25 is
about. With that variable glibc hands freed tensors back at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import pyprune
from pyprune.pruning.amount import parse_ratio
from pyprune.retraining import retrain_with_report
from pyprune.scoring.calibration import calibration
from pyprune.study.machine import describe
from tests.runtime.measure_memory import resident

WARM_UP = "shape:hidden=64,blocks=2,heads=2,kv_heads=2,head_dim=32,ffn=80,vocab=500"
LOSSES = ("none", "forward-kl", "reverse-kl", "hidden")


def weights(decoder: pyprune.Decoder) -> int:
    """Bytes of a decoder's tensors."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in decoder.tensors())


def peak(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process; the peak, and the teacher's weights."""
    few = {
        "micro_batch": options.micro_batch,
        "batch": options.micro_batch,
        "held_out": 0,
        "precision": options.precision,
    }
    warm = pyprune.load(WARM_UP)
    pruned = pyprune.apply(warm, pyprune.Pruning(blocks=(1,)))
    words = torch.randint(0, warm.vocab_size, (options.micro_batch * 16,))
    retrain_with_report(pruned, text=words, steps=1, cutoff=16, distill_from=warm, **few)
    gc.collect()
    before = resident("VmRSS")
    teacher = pyprune.load(options.model, dtype=options.teacher_dtype)
    scores = pyprune.score(teacher, calibration(teacher, samples=2, seq_len=32).input_ids)
    pruning = pyprune.depth(scores, ratio=parse_ratio(options.ratio))
    # The student has weights of its own, as one that was repaired or loaded from a directory.
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    student = pyprune.apply(teacher, pruning).map(lambda tensor: tensor.to(dtype, copy=True))
    settings: dict[str, Any] = {"train_from": options.train_from, **few}
    size = weights(teacher)
    if options.loss == "none":
        del teacher, scores
    else:
        settings |= {"distill_from": teacher, "distill_loss": options.loss, "distill_top_k": options.top_k}
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    words = torch.randint(0, student.vocab_size, (options.steps * options.micro_batch * options.cutoff,))
    retrain_with_report(student, text=words, steps=options.steps, cutoff=options.cutoff, **settings)
    return {"peak": resident("VmHWM") - before, "teacher": size}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--ratio", default="20%")
    parser.add_argument("--loss", choices=LOSSES, help="measure this one in this process (default: all)")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--cutoff", type=int, default=256)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--teacher-dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--train-from", default=0, type=lambda text: text if text == "first-cut" else int(text))
    options = parser.parse_args()
    if options.loss is not None:
        return print(json.dumps(peak(options)))
    results = {}
    for loss in LOSSES:
        words = [sys.executable, "-m", "bench.distillation_memory", *sys.argv[1:], "--loss", loss]
        results[loss] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    plain = results["none"]["peak"]
    for loss in LOSSES[1:]:
        results[loss]["ratio"] = (results[loss]["peak"] - results[loss]["teacher"]) / plain
    settings = {name: value for name, value in vars(options).items() if name != "loss"}
    print(json.dumps({"settings": settings, "machine": describe(), "losses": results}, indent=1))
    return None


if __name__ == "__main__":
    main()
