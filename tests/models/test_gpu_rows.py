"""How weights are placed on a GPU, shown on a CPU that is taken for one: rows that start on 16 bytes, zeros between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyprune import Decoder, Engine, Pruning, apply, load, plan_memory, score, to_transformers
from pyprune.models import load_sizes, pages
from pyprune.models.pages import Pages
from pyprune.scoring import journal
from pyprune.strides import GPU_ROW_BYTES, empty_rows, gpu_rows, gpu_stride, has_zero_gap, widened

# 55 neurons and 3 heads of 10: rows of down and o start on 16 bytes in no dtype, those of hidden size 48 in each.
ODD = "shape:hidden=48,blocks=2,heads=3,kv_heads=3,head_dim=10,ffn=55,vocab=77"
TIED = "shape:hidden=30,blocks=1,heads=3,kv_heads=1,head_dim=10,ffn=64,vocab=77,tied=1"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights that come to the CPU are placed as on a GPU."""
    monkeypatch.setattr(pages, "PADDED_ON", ("cpu",))


def matrices(decoder: Decoder) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in decoder.tensors() if tensor.dim() == 2}


def assert_placed(decoder: Decoder) -> None:
    for name, matrix in matrices(decoder).items():
        width = matrix.shape[1]
        assert matrix.stride() == (gpu_stride(width, matrix.itemsize), 1), name
        if width * matrix.itemsize % 16:
            assert matrix.stride(0) * matrix.itemsize % GPU_ROW_BYTES == 0, name
            assert has_zero_gap(matrix), name
            assert (widened(matrix, matrix.stride(0))[:, width:] == 0).all(), name


def assert_same(ours: Decoder, theirs: Decoder) -> None:
    expected = dict(theirs.tensors())
    assert [name for name, _ in ours.tensors()] == list(expected)
    for name, tensor in ours.tensors():
        assert torch.equal(tensor, expected[name]), name


def packed(decoder: Decoder) -> Decoder:
    """As documented at `Decoder.to`."""
    return decoder.map(Tensor.contiguous)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [ODD, TIED])
def test_a_loaded_model_has_rows_that_start_on_16_bytes(spec: str, dtype: torch.dtype, gpu: None):
    decoder = load(spec, dtype)
    assert_placed(decoder)
    assert any(not matrix.is_contiguous() for matrix in matrices(decoder).values())
    assert decoder.tied == (decoder.head.weight is decoder.embedding)
    plain = packed(decoder)
    assert all(matrix.is_contiguous() for matrix in matrices(plain).values())
    assert plain.tied == (plain.head.weight is plain.embedding)
    assert_same(plain, decoder)


def test_what_is_moved_is_placed_and_what_is_there_stays(gpu: None):
    original = packed(load(ODD))
    moved = original.to(device="cpu")
    assert_placed(moved)
    assert_same(moved, original)
    again = moved.to(device="cpu")
    for (name, before), (_, placed), (_, after) in zip(
        original.tensors(), moved.tensors(), again.tensors(), strict=True
    ):
        odd = before.dim() == 2 and before.shape[1] * before.itemsize % 16 != 0
        assert (placed is before) == (not odd), name
        assert after is placed, name
    assert_placed(moved.to(torch.bfloat16))


def test_a_narrowed_model_is_placed_and_what_it_keeps_is_shared(gpu: None):
    whole = load("shape:hidden=48,blocks=2,heads=4,kv_heads=2,head_dim=10,ffn=64,vocab=77", torch.bfloat16)
    narrow = apply(whole, Pruning(kv_groups={0: [1]}, neurons={0: [3, 5, 60]}))
    assert_placed(narrow)
    first = narrow.blocks[0]
    assert (first.ffn.width, first.mha.heads) == (61, 2)
    assert first.ffn.down.weight.stride(0) == 64
    assert narrow.blocks[1] is whole.blocks[1]
    assert narrow.embedding is whole.embedding
    assert_placed(apply(narrow, Pruning(neurons={0: [1]})))
    assert_placed(apply(narrow, Pruning(pad_to=16)))


def test_of_a_transformers_model_only_odd_matrices_are_copied_and_it_stays_as_it_was(gpu: None):
    model = to_transformers(packed(load(ODD)))
    before = {name: (parameter.data_ptr(), parameter.stride()) for name, parameter in model.named_parameters()}
    decoder = load(model)
    assert_placed(decoder)
    assert {n: (p.data_ptr(), p.stride()) for n, p in model.named_parameters()} == before
    shared = {pointer for pointer, _ in before.values()}
    for name, tensor in decoder.tensors():
        assert (tensor.data_ptr() in shared) == (not name.endswith(("o.weight", "down.weight"))), name


@pytest.mark.parametrize("spec", [ODD, TIED])
def test_checkpoints_have_no_gaps_and_come_back_placed(spec: str, gpu: None, tmp_path, monkeypatch):
    decoder = load(spec, torch.bfloat16)
    decoder.save(tmp_path / "model")
    decoder.save_gguf(tmp_path / "model.gguf", tokenizer=False)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(tensor.nbytes for tensor in stored.values()) == decoder.parameters() * 2
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < decoder.parameters() * 2 + 10_000
    for path in (tmp_path / "model", tmp_path / "model.gguf"):
        back = load(path, torch.bfloat16)
        assert_placed(back)
        assert_same(back, decoder)
        assert back.tied == decoder.tied
    monkeypatch.undo()
    plain = load(tmp_path / "model")
    assert all(matrix.is_contiguous() for matrix in matrices(plain).values())
    assert_same(plain, decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_planner_counts_what_lies_between_the_rows_to_the_byte(dtype: torch.dtype, gpu: None):
    for spec in (ODD, TIED):
        decoder = load(spec, dtype)
        taken = 0
        for _, tensor in decoder.tensors():
            apart = tensor.dim() == 2 and not tensor.is_contiguous()
            taken += tensor.untyped_storage().nbytes() if apart else tensor.nbytes
        planned = plan_memory(spec, 2, 50, dtype, device="cuda")
        assert planned.weights == taken > plan_memory(spec, 2, 50, dtype).weights
        assert planned.cache == plan_memory(spec, 2, 50, dtype).cache
        assert plan_memory(decoder, 2, 50).weights == sum(tensor.nbytes for _, tensor in decoder.tensors()), "on a CPU"


def test_the_planner_counts_results_of_odd_width_as_they_lie_on_a_gpu():
    # 65 rows of gate, up and their product in float32, 32 values apart each instead of 29.
    odd, even = (plan_memory(f"shape:hidden=16,blocks=1,heads=1,kv_heads=1,head_dim=2,ffn={width},vocab=40",
                             1, 65, "fp32", device="cuda") for width in (29, 32))  # fmt: skip
    assert odd.workspace == even.workspace


def test_whatever_walks_the_weights_finds_the_packed_ones(gpu: None):
    decoder = load(ODD, torch.bfloat16)
    plain = packed(decoder)
    assert decoder.bytes_per_token() == plain.bytes_per_token()
    assert decoder.parameters() == plain.parameters()
    assert journal.weights_digest(decoder.sizes().tensors()) == journal.weights_digest(plain.sizes().tensors())
    assert layout(load_sizes(decoder)) == layout(load_sizes(plain))
    tokens = torch.arange(12).view(2, 6)
    for weight_format in (None, "bf16-lossless12"):
        engines = [Engine(one, 2, 20, weight_format=weight_format) for one in (decoder, plain)]
        ours, theirs = (engine.prefill(tokens) for engine in engines)
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    ours, theirs = (score(one.to(torch.float32), tokens) for one in (decoder, plain))
    assert ours.values == pytest.approx(theirs.values, rel=1e-4)


def layout(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in decoder.tensors()}


def test_an_engine_uses_what_it_is_given(gpu: None):
    plain = packed(load(ODD))
    engine = Engine(plain, 1, 20)
    assert all(ours is theirs for (_, ours), (_, theirs) in zip(engine.decoder.tensors(), plain.tensors(), strict=True))


def test_transformers_and_peft_run_train_merge_and_save_them(gpu: None, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    decoder = load(ODD)
    tokens = torch.arange(12).view(2, 6)
    model = to_transformers(decoder)
    down = model.model.layers[0].mlp.down_proj
    assert down.weight.stride() == (64, 1)
    expected = to_transformers(packed(decoder))(tokens).logits
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.model.layers[0].mlp.down_proj.weight, decoder.blocks[0].ffn.down.weight)
    config = peft.LoraConfig(target_modules=["down_proj", "o_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    wrapped(input_ids=tokens, labels=tokens).loss.backward()
    trained = wrapped(tokens).logits
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, trained, rtol=1e-3, atol=1e-3)
    assert (widened(down.weight.detach(), 64)[:, 55:] == 0).all(), "what lies between the rows is never written"


def test_rows_that_start_on_16_bytes_stay_and_all_others_start_on_128():
    for width, stride in ((7155, 7168), (7160, 7160), (8577, 8640), (1, 64), (8, 8), (0, 0)):
        assert gpu_stride(width, 2) == stride
        weight = torch.ones(3, width, dtype=torch.bfloat16)
        placed = gpu_rows(weight)
        assert (placed is weight) == (stride == width)
        assert placed.stride(0) == max(stride, 1)
        rows = empty_rows(2, 3, width, dtype=torch.bfloat16, device=torch.device("meta"))
        assert rows.shape == (2, 3, width)
        assert rows.stride(1) == max(stride, 1)
    norm = torch.ones(7)
    assert gpu_rows(norm) is norm


def test_zeros_are_believed_only_where_they_were_written():
    weight = gpu_rows(torch.rand(6, 61))
    assert has_zero_gap(weight)
    assert has_zero_gap(torch.nn.Parameter(weight).detach()[2:])
    for other in (weight[:, :60], weight[:, 1:], weight.clone(), torch.zeros(6, 64)[:, :61], weight.contiguous()):
        assert not has_zero_gap(other)
    assert Pages().move(weight, None, "cpu") is weight
