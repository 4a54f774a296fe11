"""Weights side by side on huge pages: what a tensor there must be, and what it must not cost."""

from __future__ import annotations

import gc
import io
import itertools
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pyprune
from pyprune.models.pages import HUGE_PAGE, Pages

on_linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="huge pages are asked for on Linux")
SHAPES = [(1,), (3, 7), (1000, 577), (2, 3, 5), (1 << 20,), (33, 1 << 15)]


def filled(pages: Pages, dtype: torch.dtype) -> list[torch.Tensor]:
    return [pages.empty(shape, dtype).fill_(place + 1) for place, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_apart_contiguous_and_begin_on_a_line(dtype):
    for place, (tensor, shape) in enumerate(zip(filled(Pages(), dtype), SHAPES, strict=True)):
        assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
        assert bool((tensor == place + 1).all())  # those written later did not reach into it
        assert tensor.data_ptr() % 64 == 0


def test_a_tensor_outlives_its_neighbours_and_is_saved_alone():
    tensor = filled(Pages(), torch.float32)[2]
    gc.collect()
    assert bool((tensor == 3).all())
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    file = io.BytesIO()
    torch.save(tensor, file)
    assert len(file.getvalue()) < tensor.nbytes + 10_000


@pytest.mark.parametrize("shape", [(0,), (4, 0)])
def test_an_empty_tensor_takes_nothing(shape):
    assert Pages().empty(shape, torch.float32).shape == shape


def test_moving_shares_what_stays_and_rounds_as_torch_does():
    values = torch.randn(301, 7)
    assert Pages().move(values, torch.float32, "cpu") is values
    assert Pages().move(values, None, None) is values
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(Pages().move(values.T, dtype, None), values.T.to(dtype))
    assert Pages().move(values, None, "meta").is_meta


@on_linux
def test_the_system_is_asked_for_huge_pages_and_the_weights_lie_in_the_order_of_a_step():
    decoder = pyprune.load("shape:tiny")
    tensors = [tensor for name, tensor in decoder.tensors() if name.startswith("blocks")]
    for tensor, following in itertools.pairwise(tensors):
        assert 0 < following.data_ptr() - tensor.data_ptr() - tensor.nbytes + 1 <= 64
    assert "hg" in flags_at(tensors[0].data_ptr())


def flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no such mapping")


@pytest.mark.alone
@on_linux
def test_little_is_resident_beyond_the_tensors():
    pages = Pages()
    filled(pages, torch.float32)
    gc.collect()
    before = resident()
    tensors = [tensor for _ in range(7) for tensor in filled(pages, torch.float32)]
    size = sum(tensor.nbytes for tensor in tensors)
    assert size > 16 * HUGE_PAGE
    assert resident() - before < size + 1.5 * HUGE_PAGE  # the last page of the last chunk, however many there are
    del tensors, pages
    gc.collect()
    assert resident() - before < HUGE_PAGE


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.parametrize("elsewhere", ["no such advice", "switched off", "plain", "no room"])
def test_elsewhere_tensors_are_torchs_own(monkeypatch, elsewhere):
    if elsewhere == "no such advice":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    if elsewhere == "switched off":
        monkeypatch.setenv("PYPRUNE_HUGE_PAGES", "0")

    def no_room(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_room if elsewhere == "no room" else None)  # None fails when it is called
    for place, tensor in enumerate(filled(Pages(together=elsewhere != "plain"), torch.bfloat16)):
        assert bool((tensor == place + 1).all())


def test_threads_get_memory_of_their_own():
    pages = Pages()

    def fill(value: int) -> list[torch.Tensor]:
        return [pages.empty((1 + 7 * place,), torch.float32).fill_(value) for place in range(300)]

    with ThreadPoolExecutor(4) as pool:
        for value, tensors in enumerate(pool.map(fill, range(4))):
            assert all(bool((tensor == value).all()) for tensor in tensors)


def test_weights_that_are_read_once_get_none(tmp_path, monkeypatch):
    pyprune.load("shape:tiny").save(tmp_path / "model")
    opened = []
    monkeypatch.setattr(Pages, "_open", lambda *_: opened.append(1) or (_ for _ in ()).throw(OSError))
    streamed = pyprune.load(tmp_path / "model", stream=True)
    assert len(list(streamed.to(torch.bfloat16).blocks)) == 4
    assert not opened
    pyprune.load(tmp_path / "model")
    assert opened
