"""Blocks that are read when they are run: the same tensors, two at a time, and errors before any work."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyprune import Engine, InputError, Pruning, apply, load
from pyprune.models.load import load_sizes
from pyprune.models.streaming import StreamedBlocks

SHAPE = "shape:hidden=24,blocks=5,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("streamed") / "model"
    load(SHAPE).save(directory)
    return directory


def test_every_block_is_what_load_reads(checkpoint):
    streamed, whole = load(checkpoint, stream=True), load(checkpoint)
    assert streamed.streamed
    assert not whole.streamed
    for one, other in zip(streamed.blocks, whole.blocks, strict=True):
        assert one.index == other.index
        for (name, mine), (_, theirs) in zip(one.tensors(), other.tensors(), strict=True):
            assert torch.equal(mine, theirs), name
    assert torch.equal(streamed.embedding, whole.embedding)
    assert streamed.sizes().parameters() == whole.parameters()
    assert all(t.is_meta for block in streamed.sizes().blocks for _, t in block.tensors())


def test_slices_and_single_blocks_are_read_by_their_place(checkpoint):
    streamed, whole = load(checkpoint, stream=True), load(checkpoint)
    assert [block.index for block in streamed.blocks[2:]] == [2, 3, 4]
    assert torch.equal(streamed.blocks[-1].ffn.up.weight, whole.blocks[4].ffn.up.weight)
    assert torch.equal(streamed.blocks[1:4][1].mha.q.weight, whole.blocks[2].mha.q.weight)


@pytest.mark.slow
def test_no_more_than_two_blocks_are_held_at_a_time(checkpoint):
    alive: list[weakref.ref] = []
    most = 0
    streamed = load(checkpoint, stream=True)
    read = [threading.Event() for _ in streamed.blocks.sizes]

    def watched(place: int):
        block = streamed.blocks[place]
        alive.append(weakref.ref(block))
        read[place].set()
        return block

    for place, block in enumerate(StreamedBlocks(watched, streamed.sizes().blocks)):
        assert read[min(place + 1, 4)].wait(timeout=60)  # the next block is read while the caller holds this one
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        assert block.index >= 0
    assert len(alive) == 5
    assert most == 2


def test_a_pruned_checkpoint_keeps_its_original_indices(tmp_path):
    apply(load(SHAPE), Pruning(blocks=[1], neurons={2: [3, 4]})).save(tmp_path / "pruned")
    streamed = load(tmp_path / "pruned", stream=True)
    assert [block.index for block in streamed.blocks] == [0, 2, 3, 4]
    assert [block.ffn.width for block in streamed.sizes().blocks] == [37, 35, 37, 37]
    assert load_sizes(streamed).parameters() == streamed.sizes().parameters()


def test_another_dtype_is_made_block_by_block(checkpoint):
    streamed = load(checkpoint, dtype="bfloat16", stream=True)
    assert streamed.dtype == torch.bfloat16
    assert {t.dtype for _, t in streamed.blocks[3].tensors()} == {torch.bfloat16}
    assert streamed.to(torch.float32).blocks[0].mha.o.weight.dtype == torch.float32
    assert streamed.to(torch.float32).streamed


def test_streamed_blocks_are_put_on_a_device_and_narrowed_when_they_are_read(checkpoint):
    streamed, whole = load(checkpoint, stream=True), load(checkpoint)
    for moved in (streamed.to(torch.float16), streamed.to(torch.float16, "cpu"), load(streamed, "fp16")):
        assert moved.streamed
        assert {(t.dtype, t.is_meta) for b in moved.sizes().blocks for _, t in b.tensors()} == {(torch.float16, True)}
        assert torch.equal(moved.blocks[3].ffn.up.weight, whole.blocks[3].ffn.up.weight.half())
    assert torch.equal(load(streamed).blocks[2].mha.o.weight, whole.blocks[2].mha.o.weight)


def test_a_streamed_tensor_that_float16_cannot_hold_is_named_by_its_place(tmp_path):
    decoder = apply(load(SHAPE), Pruning(blocks=[1]))
    decoder.blocks[2].ffn.up.weight[5, 2] = 1e6
    decoder.save(tmp_path / "pruned")
    narrowed = load(tmp_path / "pruned", stream=True).to(torch.float16)
    assert narrowed.blocks[1].ffn.up.weight.dtype == torch.float16
    with pytest.raises(InputError, match=r"tensor blocks\.2\.ffn\.up\.weight does not fit torch\.float16"):
        list(narrowed.blocks)


def test_sizes_alone_change_their_dtype_but_are_put_on_no_device():
    sizes = load_sizes(SHAPE)
    assert {t.dtype for _, t in sizes.to(torch.float16).tensors()} == {torch.float16}
    with pytest.raises(InputError, match="only the sizes of its weights are here"):
        sizes.to(device="cpu")


@pytest.mark.parametrize(
    ("spec", "message"),
    [("smollm2-135m", "smollm2-135m: cannot be streamed"), ("shape:tiny", "shape:tiny: cannot be streamed")],
)
def test_what_is_no_safetensors_directory_is_refused(spec: str, message: str):
    with pytest.raises(InputError, match=message):
        load(spec, stream=True)


def test_tensors_that_are_missing_or_misshapen_are_told_before_any_block_is_read(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    name = "model.layers.4.mlp.down_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"tensor {name} is missing"):
        load(tmp_path, stream=True)
    save_file({**tensors, name: tensors[name][:, 1:].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"tensor {name} has shape \[24, 36\]; the configuration asks for \[24, 37\]"):
        load(tmp_path, stream=True)


def test_an_engine_wants_its_blocks_at_hand(checkpoint):
    with pytest.raises(InputError, match="its blocks are streamed"):
        Engine(load(checkpoint, stream=True))
