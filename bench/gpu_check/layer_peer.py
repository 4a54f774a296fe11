"""Part: 32 decoder layers under torch.compile in one CUDA graph, the strong peer, against 32 of ours.

All 32 layers of a side are the same block of LLaMA-7B's sizes (404 MB: several times any L2 cache), so that the peer
has one layer to compile and not a model. Options: `model` as in `table1`, `seconds` for the second compile mode.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import pyprune
from bench.gpu_check import paper_rows
from bench.gpu_check.environment import gpu_report
from bench.gpu_check.race import quiet
from bench.gpu_check.replays import chain_replay, decode_replay, interleaved_replays
from bench.gpu_check.settings import Save, Settings
from bench.gpu_check.table1 import MODELS, NEW, PROMPT
from bench.peers import Absent
from bench.peers.hugging_face import at_most
from pyprune.models.decoder import Decoder
from pyprune.models.tensors import one_line
from pyprune.models.transformers_model import to_transformers
from pyprune.runtime.huggingface.layers import CACHE
from pyprune.study.measure import speedup

LAYERS, BATCHES, ROUNDS, REPLAYS = 32, (1, 16), 9, 10
DRY_SPEC, DRY_LAYERS, DRY_ROUNDS = "shape:hidden=64,blocks=1,heads=4,kv_heads=4,head_dim=16,ffn=172,vocab=64", 3, 2
MODES: tuple[dict[str, str], ...] = ({}, {"mode": "max-autotune-no-cudagraphs"})
DRY_MODES: tuple[dict[str, str], ...] = ({"backend": "eager"},)
"""What torch.compile is told: nothing first, which is compiled soon; then to try several products of each shape. A dry
run only traces the layer."""

COMPILE_SECONDS = 30
SECONDS = {"7b": 35, "13b": 40}
"""Expected on an H200; a compile mode that takes longer than COMPILE_SECONDS is told as absent."""


def run(settings: Settings, save: Save) -> dict[str, Any]:
    """Raw seconds of a replay of all layers on each side at each batch, paired, and the share of the bandwidth."""
    quiet()
    dry, device = settings.dry_run, torch.device(settings.device)
    name = MODELS[settings.options.get("model", "7b")]
    layers, rounds = (DRY_LAYERS, DRY_ROUNDS) if dry else (LAYERS, ROUNDS)
    spec = DRY_SPEC if dry else f"shape:{name},blocks=1,vocab=256"
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=device)
    ours = replace(decoder, blocks=tuple(replace(decoder.blocks[0], index=place) for place in range(layers)))
    size = layers * sum(tensor.numel() * tensor.element_size() for _, tensor in decoder.blocks[0].tensors())
    result: dict[str, Any] = {
        "what": "layer-peer", "gpu": gpu_report(), "device": paper_rows.name_of_device(device), "model": name,
        "dtype": "bfloat16", "layers": layers, "position": PROMPT + NEW // 2, "bytes": size,
        "bandwidth": settings.bandwidth, "timings": [], "absent": {}, "compile_seconds": {},
    }  # fmt: skip
    began, budget = time.perf_counter(), settings.options.get("seconds", COMPILE_SECONDS)
    for options in DRY_MODES if dry else MODES:
        mode = next(iter(options.values()), "default")
        for batch in BATCHES:
            key = f"{mode}, batch {batch}"
            if options and not dry and time.perf_counter() - began > budget:
                result["absent"][key] = f"no time left after {budget:.0f} s"
                continue
            steps: dict[str, Callable[[], object]] = {}
            before = time.perf_counter()
            try:
                steps["peer"] = peer(decoder, layers, batch, result["position"], options)
            except Absent as reason:
                result["absent"][key] = str(reason)
            result["compile_seconds"][key] = time.perf_counter() - before
            prompts = torch.ones(batch, PROMPT, dtype=torch.int64, device=device)
            engine = pyprune.Engine(ours, max_batch=batch, max_len=PROMPT + NEW)
            steps["pyprune"] = decode_replay(engine, prompts, result["position"])
            seconds = interleaved_replays(steps, device, rounds, 1 if dry else REPLAYS)
            result["timings"].append(_line(seconds, batch, mode, size, settings.bandwidth))
            save(result)
    return result


def _line(seconds: dict[str, list[float]], batch: int, mode: str, size: int, bandwidth: float | None) -> dict[str, Any]:
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    line: dict[str, Any] = {"batch": batch, "mode": mode, "seconds": seconds, "median_seconds": medians}
    if bandwidth:
        line["share"] = {name: size / median / bandwidth for name, median in medians.items()}
    if "peer" in seconds:
        line["speedup"] = speedup(seconds["peer"], seconds["pyprune"])
    return line


class OneCache:
    """A static cache of one layer, as transformers' attention asks for it: it writes one row and gives all rows."""

    def __init__(self, shape: tuple[int, int, int, int], position: int, dtype: torch.dtype, device: torch.device):
        self.keys, self.values = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
        self.position = torch.tensor([position], device=device)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.position, keys)
        self.values.index_copy_(2, self.position, values)
        return self.keys, self.values


@torch.inference_mode()
def peer(decoder: Decoder, layers: int, batch: int, position: int, options: dict[str, str]) -> Callable[[], object]:
    """A replay of transformers' decoder layer, compiled, `layers` times in a row. Absent where it does not compile."""
    torch._dynamo.reset()
    model, device = to_transformers(decoder, attn_implementation="sdpa"), decoder.device
    mha, length = decoder.blocks[0].mha, PROMPT + NEW
    assert mha is not None
    cache = OneCache((batch, mha.kv_heads, length, mha.head_dim), position, decoder.dtype, device)
    hidden = torch.randn(batch, 1, decoder.hidden_size, device=device).to(decoder.dtype)
    places = torch.full((batch, 1), position, device=device)
    turns = model.model.rotary_emb(hidden, places)
    # As the engine's attention does, the peer's sees the rows up to its own only.
    mask = (torch.arange(length, device=device) <= position).expand(batch, 1, 1, length)
    layer = model.model.layers[0]

    def forward(x: Tensor) -> Tensor:
        return layer(
            x, attention_mask=mask, position_ids=places, use_cache=True, position_embeddings=turns,
            **{CACHE: cache},
        )  # fmt: skip

    def step() -> None:
        x = hidden
        for _ in range(layers):
            x = compiled(x)

    try:
        with at_most(COMPILE_SECONDS):
            compiled = torch.compile(forward, fullgraph=True, dynamic=False, **options)
            expected = forward(hidden)
            error = (compiled(hidden) - expected).abs().max() / expected.abs().max()
        if not error < 0.05:  # NaN among them
            raise Absent(f"the compiled layer is off by {float(error):.1e}")
        return chain_replay([step], device)
    except TimeoutError:
        raise Absent(f"compiling took more than {COMPILE_SECONDS} s") from None
    except Absent:
        raise
    except Exception as error:  # each stage of torch.compile has exceptions of its own
        raise Absent(f"torch.compile failed: {one_line(error)[:200]}") from error


def warm(settings: Settings) -> str:
    """Compile the peer's layer by the default mode, which torch keeps on disk."""
    name, dry = MODELS[settings.options.get("model", "7b")], settings.dry_run
    spec = DRY_SPEC if dry else f"shape:{name},blocks=1,vocab=256"
    decoder = pyprune.load(spec, dtype=torch.bfloat16, device=torch.device(settings.device))
    for batch in BATCHES:
        peer(decoder, 1, batch, PROMPT + NEW // 2, (DRY_MODES if dry else MODES)[0])
    return f"{name}: a layer compiled at batch {', '.join(map(str, BATCHES))}"
