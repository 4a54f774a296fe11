"""GGUF files that are cut short or lie: refused in one line, without a crash and without memory for what they claim."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc

import pytest
from gguf_random import write_random_qwen2

from pyprune.errors import InputError
from pyprune.models import load
from pyprune.models.load import load_sizes

SEED = int(os.environ.get("PYPRUNE_TEST_SEED", "0"))
TINY = {"hidden": 256, "ffn": 256, "blocks": 2, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 40}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_random_qwen2(path, TINY)
    return path.read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def file(metadata: bytes = b"", tensors: bytes = b"", entries: int = 0, count: int = 0, version: int = 3) -> bytes:
    """A file with this metadata and these tensors' descriptions, and 4096 bytes behind them."""
    return b"GGUF" + struct.pack("<IQQ", version, count, entries) + metadata + tensors + bytes(4096)


def tensor(sizes: list[int], kind: int, offset: int, name: str = "token_embd.weight") -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


HOSTILE = {
    "more tensors than bytes": (file(count=1 << 62), "tensor has 0 dimensions"),
    "more entries than bytes": (file(entries=1 << 63), "metadata"),
    "a name longer than the file": (file(struct.pack("<Q", 1 << 63), entries=1), "key 0 of 1.* takes 9223372036854775"),
    "a text longer than the file": (
        file(text("general.name") + struct.pack("<IQ", 8, (1 << 64) - 1), entries=1), "metadata general.name takes",
    ),
    "an array of 2^60 numbers": (
        file(text("a.b") + struct.pack("<IIQ", 9, 4, 1 << 60), entries=1), "metadata a.b takes 4611686018427387904",
    ),
    "an array of 2^60 texts": (
        file(text("a.b") + struct.pack("<IIQ", 9, 8, 1 << 60), entries=1), r"metadata a\.b .*of 1152921504606846976",
    ),
    "an array of arrays": (
        file(text("a.b") + struct.pack("<IIQ", 9, 9, 1), entries=1), r"metadata a\.b is an array of type 9",
    ),
    "a kind of value that does not exist": (
        file(text("a.b") + struct.pack("<I", 77), entries=1), r"metadata a\.b is of type 77",
    ),
    "a key twice": (file(2 * (text("a.b") + struct.pack("<IB", 0, 1)), entries=2), r"metadata a\.b is there twice"),
    "text that is not UTF-8": (
        file(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1), entries=1), "not UTF-8",
    ),
    "an alignment of 3": (
        file(text("general.alignment") + struct.pack("<II", 4, 3), entries=1), "general.alignment is 3; a power of two",
    ),
    "another version": (file(version=1), "version 1; one of 2, 3 is expected"),
    "the other byte order": (file(version=3 << 24), "written for the other byte order"),
    "sizes that overflow": (
        file(tensors=tensor([1 << 33, 1 << 33], 12, 0), count=1),
        r"tensor token_embd\.weight of type Q4_K and shape \[8589934592, 8589934592\] takes \d+ bytes",
    ),
    "sizes whose product wraps to a small number": (
        file(tensors=tensor([1 << 32, (1 << 32) + 1], 0, 0), count=1), r"token_embd\.weight of type F32.* takes",
    ),
    "a size of 2^63 beside one of 0": (
        file(tensors=tensor([0, 1 << 63], 0, 0), count=1), r"token_embd\.weight of type F32.*below 2\^63",
    ),
    "an offset outside of the file": (
        file(tensors=tensor([256, 4], 12, 1 << 40), count=1), r"token_embd\.weight of type Q4_K.*takes 576",
    ),
    "an offset that overflows": (
        file(tensors=tensor([256, 4], 12, (1 << 64) - 32), count=1), r"token_embd\.weight of type Q4_K.*takes 576",
    ),
    "a type that does not exist": (
        file(tensors=tensor([256, 4], 4, 0), count=1), r"tensor token_embd\.weight is of type 4, which gguf does not",
    ),
    "rows of no whole blocks": (
        file(tensors=tensor([255, 4], 12, 0), count=1),
        r"token_embd\.weight of type Q4_K and shape \[4, 255\]: rows of whole blocks of 256",
    ),
    "no dimensions": (file(tensors=tensor([], 0, 0), count=1), "token_embd.weight has 0 dimensions; 1 to 4"),
    "too many dimensions": (file(tensors=tensor([1] * 5, 0, 0), count=1), "token_embd.weight has 5 dimensions"),
    "a tensor twice": (
        file(tensors=2 * tensor([4, 4], 0, 0), count=2), r"tensor token_embd\.weight is there twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_claims_is_checked_against_its_size(tmp_path, name):
    data, message = HOSTILE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    load_sizes("shape:tiny")  # what is imported on the way is not what is measured
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"bad\.gguf: not a whole GGUF file \(.*" + message) as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def replaced(whole: bytes, key: str, value: bytes) -> bytes:
    """The file with the four bytes of a metadata value changed."""
    place = whole.index(text(key)) + len(text(key)) + 4
    return whole[:place] + value + whole[place + len(value) :]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 0xFFFFFFFF, "block_count is 4294967295, but there are 26 tensors"),
        ("attention.head_count", 0xFFFFFFF0, r"attn_q.*has shape \[256, 256\]"),
        ("attention.key_length", 0xFFFFFFFE, "heads of 4294967294 values; at most 65536"),
        ("embedding_length", 0xFFFFFF00, r"token_embd.weight has shape \[40, 256\]"),
        ("vocab_size", 0xFFFFFFFF, r"token_embd.weight has shape \[40, 256\].*\[4294967295, 256\]"),
        ("feed_forward_length", 0xFFFFFFFF, r"ffn_gate.*has shape \[256, 256\]"),
        ("attention.head_count", 0, "attention.head_count is 0"),
    ],
)
@pytest.mark.parametrize("read", [load, load_sizes])
def test_sizes_of_the_metadata_that_the_tensors_do_not_have(whole, tmp_path, key, value, message, read):
    path = tmp_path / "m.gguf"
    path.write_bytes(replaced(whole, f"qwen2.{key}", struct.pack("<I", value)))
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"add_head_count": [4, "four"]}, "head_count"),
        ({"add_context_length": -1}, "context_length"),
        ({"add_eos_token_id": -5}, "eos_token_id"),
    ],
)
def test_metadata_of_another_kind(write_gguf, metadata, message):
    name, value = next(iter(metadata.items()))

    def more(writer):
        key = {"add_head_count": "llama.attention.head_count", "add_context_length": "llama.context_length",
               "add_eos_token_id": "tokenizer.ggml.eos_token_id"}[name]  # fmt: skip
        writer.kv_data[0].pop(key, None)
        if isinstance(value, list):
            writer.add_string(key, "four")
        else:
            writer.add_int32(key, value)

    with pytest.raises(InputError, match=f"{message} is .*a whole number"):
        load(write_gguf(more=more))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -5.0], ids=str)
def test_a_context_of_yarn_that_is_no_length(write_gguf, value):
    def more(writer):
        writer.add_string("llama.rope.scaling.type", "yarn")
        writer.add_float32("llama.rope.scaling.factor", 2.0)
        writer.add_float32("llama.rope.scaling.original_context_length", value)

    with pytest.raises(InputError, match=rf"m\.gguf: llama\.rope\.scaling\.original_context_length is {value}; a pos"):
        load(write_gguf(more=more))


FUZZ = """
import random, resource, sys, warnings
from pathlib import Path
import torch, pyprune
from pyprune.errors import InputError
from pyprune.models.gguf_file import GGUFFile
from pyprune.models.load import load_sizes
whole, path, seed = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
pyprune.load(Path(sys.argv[1]), dtype="bf16")
warnings.simplefilter("ignore")
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + (300 << 20), used + (300 << 20)))
draw, refused = random.Random(seed), 0
header = min(tensor.offset for tensor in GGUFFile(Path(sys.argv[1])).tensors.values())
for turn in range(600):
    data = bytearray(whole)
    if turn % 3 == 0:
        del data[draw.randrange(len(data) if turn % 2 else header + 64):]
    else:
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = draw.randrange(header)
            size = draw.choice((1, 4, 8))
            data[place:place + size] = draw.choice((draw.randbytes(size), b"\\xff" * size, b"\\0" * size))
    path.write_bytes(data)
    try:
        pyprune.load(path, dtype=draw.choice(("f32", "bf16", None)))
        load_sizes(path)
    except InputError as error:
        refused += 1
        assert "\\n" not in str(error) and str(path) in str(error), (turn, str(error))
print(refused)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_random_damage_is_refused_or_harmless(whole, tmp_path):
    """600 files cut, or overwritten at random places of their header, under a limit on memory."""
    (tmp_path / "whole.gguf").write_bytes(whole)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, tmp_path / "whole.gguf", tmp_path / "damaged.gguf", str(SEED)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 300
