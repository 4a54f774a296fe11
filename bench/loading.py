"""Loads one file in this process and says what it took: one line of JSON.

    python -m bench.loading FILE --how pyprune --dtype bf16

`how`: pyprune; gguf (the `gguf` package's reader and its NumPy, a tensor at a time, into torch tensors of the dtype);
llama.cpp (llama-cpp-python, which keeps the weights as they are in the file). `peak` is the most that was resident in
the process (Linux), Python, torch and the file's pages included; `before` is what was resident before the load.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyprune.models.tensors import as_dtype
from tests.runtime.measure_memory import resident

WAYS = ("pyprune", "gguf", "llama.cpp")


def _pyprune(path: Path, dtype: torch.dtype) -> Callable[[], Any]:
    import pyprune

    return lambda: pyprune.load(path, dtype=dtype)


def _gguf(path: Path, dtype: torch.dtype) -> Callable[[], Any]:
    import gguf

    def load() -> list[torch.Tensor]:
        tensors = gguf.GGUFReader(path).tensors
        return [torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()).to(dtype) for t in tensors]

    return load


def _llama_cpp(path: Path, dtype: torch.dtype) -> Callable[[], Any]:
    from llama_cpp import Llama

    return lambda: Llama(str(path), n_ctx=64, n_gpu_layers=0, use_mmap=False, verbose=False)


def absent(how: str) -> bool:
    """Whether this way's package is not installed."""
    return importlib.util.find_spec({"pyprune": "pyprune", "gguf": "gguf", "llama.cpp": "llama_cpp"}[how]) is None


def measure(path: Path, how: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one load, and bytes resident before it and at most."""
    load = {"pyprune": _pyprune, "gguf": _gguf, "llama.cpp": _llama_cpp}[how](path, dtype)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    start, processor = time.perf_counter(), time.process_time()
    loaded = load()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    result = {"seconds": seconds, "processor_seconds": processor, "before": before, "peak": resident("VmHWM")}
    if how == "pyprune":
        result["weights"] = sum(tensor.nbytes for _, tensor in loaded.tensors())
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--how", choices=WAYS, default="pyprune")
    parser.add_argument("--dtype", default="bf16")
    options = parser.parse_args()
    print(json.dumps(measure(options.file, options.how, as_dtype(options.dtype))))
