"""The memory that LLM-Pruner's gradients take, above the process before the model is loaded, in a process of its own.

    python bench/width_memory.py --variant param_mix --samples 1000

prints one line of JSON. The paper's Table 7 has its 1000 samples out of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="param_first", help="of llm-pruner (default: param_first)")
    parser.add_argument("--samples", type=int, default=1000, help="calibration windows (default: 1000)")
    parser.add_argument("--seq-len", type=int, default=64, help="tokens in each (default: 64)")
    parser.add_argument("--model", default="smollm2-135m", help="(default: smollm2-135m)")
    options = parser.parse_args()

    import torch

    import pyprune
    from pyprune.pruning import width

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    decoder = pyprune.load(options.model)
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in decoder.tensors())
    shape, generator = (options.samples, options.seq_len), torch.Generator().manual_seed(0)
    ids = torch.randint(0, decoder.vocab_size, shape, generator=generator)
    start = time.perf_counter()
    width(decoder, "llm-pruner", ratio=0.2, calibration=ids, variant=options.variant)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    settings = {"variant": options.variant, "samples": options.samples, "seq_len": options.seq_len, "model_bytes": size}
    print(json.dumps({**settings, "peak_bytes": peak, "peak_over_model": peak / size, "seconds": seconds}))


if __name__ == "__main__":
    main()
