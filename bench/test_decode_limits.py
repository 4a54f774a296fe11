"""How near decoding comes to what the bytes allow: the read limit, odd widths, skipped blocks. All in bf16.

The targets stand in the tables beside what was measured; nothing is asserted.
"""

from __future__ import annotations

from functools import partial
from statistics import median

import pytest
import torch

import pyprune
from bench.peers import Decoding, PyPrune
from bench.rounds import Side
from bench.tables import interval_text
from pyprune.models.decoder import Decoder

PROMPT, ROUNDS = 12, 9
SMOLLM2_SIZES = "shape:hidden=576,blocks=30,heads=9,kv_heads=3,head_dim=64,vocab=49152,tied=1,ffn="
# The first is aligned, and what the others are held against; 1152 is aligned too, next to the odd 1161.
WIDTHS = (1536, 1531, 1433, 1161, 1152)


@pytest.fixture(scope="module")
def llama_1b() -> Decoder:
    return pyprune.load("shape:llama-1b")


def decode_side(decoder: Decoder, batch: int, steps: int, skip: list[int] | None = None) -> Side:
    """`steps` decode steps of `batch` sequences, their prefill untimed."""
    prompts = torch.randint(0, decoder.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    decoding = PyPrune().open(decoder, batch, PROMPT + steps, skip)
    return Side(partial(decoding.decode, steps), partial(decoding.prefill, prompts))


def test_llama_1b_against_the_read_limit(interleaved, benchmark, table, llama_1b, memory):
    """Batch 1 at 85 % of the read limit, batch 4 in at most 1.4 times its time."""
    steps, size = 16, llama_1b.bytes_per_token()
    sides = {f"batch {batch}": decode_side(llama_1b, batch, steps) for batch in (1, 4)}
    reading = memory.reading(steps * size)
    seconds = interleaved({**sides, "memory read": Side(reading.run)}, ROUNDS)
    read = reading.bytes / median(seconds["memory read"])
    rate = {name: steps * size / median(seconds[name]) for name in sides}
    longer, limit = (benchmark.extra_info["ratio"][name] for name in ("batch 4", "memory read"))
    share = interval_text(limit, "{:.1%}", lambda ratio: ratio * steps * size / reading.bytes)
    benchmark.extra_info.update(
        decode_steps=steps,
        bytes_per_token=size,
        bytes_per_second=rate,
        read_bytes=reading.bytes,
        read_bytes_per_second=read,
    )
    for name in sides:
        cells = {
            "ms a step": f"{1e3 * size / rate[name]:.1f}",
            "weights, GB/s": f"{rate[name] / 1e9:.1f}",
            "read limit, GB/s": f"{read / 1e9:.1f}",
            "share (batch 1: at least 85 %)": share if name == "batch 1" else f"{rate[name] / read:.1%}",
            "times batch 1 (at most 1.40)": "" if name == "batch 1" else interval_text(longer),
        }
        table("shape:llama-1b, bf16, against the memory's read limit", {"": name, **cells})


def test_odd_widths_cost_their_bytes(interleaved, benchmark, table):
    """SmolLM2's sizes with other FFN widths: time within 3 % of the first width's times the ratio of bytes."""
    steps = 64
    decoders = {width: pyprune.load(f"{SMOLLM2_SIZES}{width}", dtype=torch.bfloat16) for width in WIDTHS}
    seconds = interleaved({str(width): decode_side(decoder, 1, steps) for width, decoder in decoders.items()}, ROUNDS)
    size = {str(width): decoder.bytes_per_token() for width, decoder in decoders.items()}
    benchmark.extra_info.update(decode_steps=steps, bytes_per_token=size)
    first = str(WIDTHS[0])
    for width in seconds:
        ratio = benchmark.extra_info["ratio"].get(width)
        predicted = size[width] / size[first]
        deviation = "" if ratio is None else interval_text(ratio, "{:+.1%}", lambda r, p=predicted: r / p - 1)
        cells = {
            "ms a step": f"{1e3 * median(seconds[width]) / steps:.2f}",
            f"bytes / those of {first}": f"{predicted:.3f}",
            f"time / that of {first}": "" if ratio is None else f"{ratio['median']:.3f}",
            "time against the bytes' prediction (within 3 %)": deviation,
        }
        table("FFN widths in SmolLM2's sizes, bf16, batch 1", {"width": width, **cells})


@pytest.mark.parametrize(("model", "steps"), [("smollm2", 64), ("llama_1b", 16)])
def test_skipped_blocks_save_their_bytes(interleaved, benchmark, table, request, model: str, steps: int):
    """The time saved by `skip` is the skipped blocks' share of the bytes, within 5 %."""
    decoder = request.getfixturevalue(model).to(torch.bfloat16)
    blocks = len(decoder.blocks)
    # The last ones: which they are makes no difference to the time.
    skips = {
        f"{count} skipped": list(range(blocks - count, blocks)) for count in (blocks // 8, blocks // 3, blocks // 2)
    }
    sides = {"none skipped": decode_side(decoder, 1, steps)}
    sides.update({name: decode_side(decoder, 1, steps, skip) for name, skip in skips.items()})
    seconds = interleaved(sides, ROUNDS)
    total = decoder.bytes_per_token()
    share = {name: sum(block_bytes(decoder, index) for index in skip) / total for name, skip in skips.items()}
    benchmark.extra_info.update(decode_steps=steps, bytes_per_token=total, share_of_bytes=share)
    for name in skips:
        ratio = benchmark.extra_info["ratio"][name]
        cells = {
            "ms a step": f"{1e3 * median(seconds[name]) / steps:.2f}",
            "share of the bytes": f"{share[name]:.1%}",
            "time saved": f"{1 - ratio['median']:.1%}",
            "saved / share (0.95 to 1.05)": interval_text(ratio, "{:.3f}", lambda r, s=share[name]: (1 - r) / s),
        }
        title = f"{decoder.name}, bf16, batch 1: skipped blocks"
        table(title, {f"of {blocks}": name, **cells})


def test_long_caches_are_read_at_the_limit(interleaved, benchmark, table, smollm2, memory):
    """Batch 16 with 1,900 tokens in each cache against 12: the bytes of the cache over the time that they add."""
    decoder, batch, steps = smollm2.to(torch.bfloat16), 16, 8
    row = sum(2 * b.mha.kv_heads * b.mha.head_dim * decoder.dtype.itemsize for b in decoder.blocks)
    lengths = {"1900 tokens": 1900, "12 tokens": PROMPT}
    # A prompt is read once, and every round goes on where the last one ended.
    sides = {name: decoded_on(decoder, batch, length) for name, length in lengths.items()}
    reading = memory.reading(steps * batch * row * 1900)
    timed = {name: Side(partial(decoding.decode, steps)) for name, decoding in sides.items()}
    seconds = interleaved({**timed, "memory read": Side(reading.run)}, ROUNDS)
    read = reading.bytes / median(seconds["memory read"])
    size = batch * row * (1900 - PROMPT)  # both grow alike
    added = (median(seconds["1900 tokens"]) - median(seconds["12 tokens"])) / steps
    benchmark.extra_info.update(
        batch=batch,
        decode_steps=steps,
        cache_bytes_per_token=row,
        cache_bytes_per_second=size / added,
        read_bytes=reading.bytes,
        read_bytes_per_second=read,
    )
    for name in lengths:
        cells = {
            "ms a step": f"{1e3 * median(seconds[name]) / steps:.1f}",
            "cache, GB/s": f"{size / added / 1e9:.1f}" if name == "1900 tokens" else "",
            "read limit, GB/s": f"{read / 1e9:.1f}",
            "share": f"{size / added / read:.0%}" if name == "1900 tokens" else "",
        }
        table("SmolLM2, bf16, batch 16: what a long cache adds", {"": name, **cells})


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_weights_on_huge_pages(interleaved, benchmark, table, monkeypatch, batch: int):
    """The same model twice, its weights on pages of 2 MiB one behind the other, and where the allocator has room."""
    steps, sides = 64, {}
    for name, setting in (("huge pages", "1"), ("the allocator's", "0")):
        monkeypatch.setenv("PYPRUNE_HUGE_PAGES", setting)
        sides[name] = decode_side(pyprune.load("smollm2-135m", dtype=torch.bfloat16), batch, steps)
    seconds = interleaved(sides, 2 * ROUNDS)
    benchmark.extra_info.update(batch=batch, decode_steps=steps)
    ratio = interval_text(benchmark.extra_info["ratio"]["the allocator's"])
    for name in sides:
        cells = {
            "ms a step": f"{1e3 * median(seconds[name]) / steps:.2f}",
            "times as long as on huge pages": ratio if name != "huge pages" else "",
        }
        table("SmolLM2, bf16: where the weights lie", {"batch": str(batch), "weights on": name, **cells})


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("model", "steps"), [("smollm2", 64), ("llama_1b", 16)])
def test_compressed_weights(interleaved, benchmark, table, request, model: str, steps: int, batch: int):
    """The same steps with weights in 16 and in 12 bits."""
    decoder = request.getfixturevalue(model).to(torch.bfloat16)
    prompts = torch.randint(0, decoder.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    peers = {"compressed": PyPrune(weight_format="bf16-lossless12"), "as they are": PyPrune()}
    decodings = {name: peer.open(decoder, batch, PROMPT + steps) for name, peer in peers.items()}
    sides = {name: Side(partial(one.decode, steps), partial(one.prefill, prompts)) for name, one in decodings.items()}
    seconds = interleaved(sides, ROUNDS)
    sizes = {name: one.bytes_per_token for name, one in decodings.items()}
    benchmark.extra_info.update(batch=batch, decode_steps=steps, bytes_per_token=sizes)
    for name in sides:
        cells = {
            "MB a step": f"{sizes[name] / 1e6:.1f}",
            "ms a step": f"{1e3 * median(seconds[name]) / steps:.2f}",
            "times as long": interval_text(benchmark.extra_info["ratio"][name]) if name != "compressed" else "",
            "times the bytes": f"{sizes[name] / sizes['compressed']:.2f}" if name != "compressed" else "",
        }
        table(f"{decoder.name}, bf16: weights in 12 bits", {"batch": str(batch), "weights": name, **cells})


def decoded_on(decoder: Decoder, batch: int, length: int) -> Decoding:
    """`batch` sequences that have read a prompt of `length` tokens and have room for 400 more."""
    decoding = PyPrune().open(decoder, batch, length + 400)
    decoding.prefill(torch.randint(0, decoder.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)))
    return decoding


def block_bytes(decoder: Decoder, position: int) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in decoder.blocks[position].tensors())
