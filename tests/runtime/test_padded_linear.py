"""PaddedLinear: an nn.Linear to state dicts, optimizers, PEFT and the compiler, with rows that stay padded."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import pyprune
from pyprune import InputError, PaddedLinear, ops
from pyprune.strides import has_padded_stride
from tests import seeds
from tests.judge import assert_model_no_worse, assert_no_worse_than_torch
from tests.runtime.test_accelerate import calls, check, ids, run, small_model  # noqa: F401


def is_padded(linear: nn.Linear) -> bool:
    return has_padded_stride(linear.weight.data) and not linear.weight.is_contiguous()


def with_padded_linears(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PaddedLinear.from_linear(child))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [1, 4, 70])
def test_it_computes_what_the_linear_did_and_trains_like_it(rows: int, dtype: torch.dtype):
    linear = nn.Linear(61, 37, dtype=dtype)
    padded = PaddedLinear.from_linear(copy.deepcopy(linear))
    x, exact = torch.randn(2, rows, 61, dtype=dtype), copy.deepcopy(linear).double()
    above = torch.randn(2, rows, 37, dtype=dtype)
    results = []
    for module in (padded, linear, exact):
        given = x.to(module.weight.dtype, copy=True).requires_grad_()
        result = module(given)
        result.backward(above.to(result.dtype))
        results.append([result.detach(), given.grad, module.weight.grad, module.bias.grad])
    for ours, theirs, true in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert_no_worse_than_torch(ours, theirs, true, tiny=0, dtype=dtype)


def test_its_rows_stay_padded_whatever_is_done_to_it():
    linear = PaddedLinear(61, 37)
    assert is_padded(linear)
    before = linear.weight.detach().clone()
    done = {
        "cast": copy.deepcopy(linear).to(torch.bfloat16),
        "cast and back": copy.deepcopy(linear).double().float(),
        "copied": copy.deepcopy(linear),
        "shared": copy.deepcopy(linear).share_memory(),
        "materialised": PaddedLinear(61, 37, device="meta").to_empty(device="cpu"),
        "loaded": PaddedLinear(61, 37),
        "loaded, assigned": PaddedLinear(61, 37),
        "empty before it is loaded": PaddedLinear(61, 37, device="meta"),
    }
    plain = nn.Linear(61, 37)
    plain.load_state_dict(linear.state_dict())
    done["loaded"].load_state_dict(plain.state_dict())
    done["loaded, assigned"].load_state_dict(plain.state_dict(), assign=True)
    done["empty before it is loaded"].load_state_dict(linear.state_dict(), assign=True)
    for name, module in done.items():
        assert is_padded(module), name
        assert name in ("cast", "materialised") or torch.equal(module.weight, before), name


def test_its_state_dict_is_that_of_a_linear_and_is_not_a_copy():
    linear, plain = PaddedLinear(61, 37), nn.Linear(61, 37)
    state = linear.state_dict()
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in plain.state_dict().items()}
    assert state["weight"].data_ptr() == linear.weight.data_ptr()
    plain.load_state_dict(state)
    assert torch.equal(plain.weight, linear.weight)
    assert plain.weight.is_contiguous()
    file = io.BytesIO()
    torch.save(state, file)


def test_parameters_are_taken_over_so_ties_and_optimizers_hold():
    embedding, head = nn.Embedding(37, 61), nn.Linear(61, 37, bias=False)
    head.weight = embedding.weight
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1)
    padded = PaddedLinear.from_linear(head)
    assert padded.weight is embedding.weight
    before = embedding.weight.detach().clone()
    padded(torch.randn(3, 61)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(embedding.weight, before)
    assert is_padded(padded)
    frozen = nn.Linear(5, 3).requires_grad_(False).eval()
    taken = PaddedLinear.from_linear(frozen)
    assert not taken.training
    assert not taken.weight.requires_grad


@pytest.mark.parametrize("given", [nn.Conv1d(1, 1, 1), nn.Bilinear(2, 2, 2), 7])
def test_anything_but_a_linear_is_refused(given: object):
    with pytest.raises(InputError, match=f"PaddedLinear: {type(given).__name__} given; an nn.Linear with"):
        PaddedLinear.from_linear(given)


def test_another_dtype_is_refused_as_by_a_linear_and_autocast_is_followed():
    linear = PaddedLinear(61, 37)
    with pytest.raises(RuntimeError):
        linear(torch.randn(2, 61, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(2, 61)).dtype == torch.bfloat16
    assert linear(torch.randn(0, 61)).shape == (0, 37)


def test_few_rows_run_on_the_operator_and_many_on_torch_s_gemm_where_that_is_faster(calls, monkeypatch):  # noqa: F811
    from pyprune.runtime import rows

    monkeypatch.setitem(rows.MAX_ROWS, torch.bfloat16, rows.SKINNY_ROWS)
    linear = PaddedLinear(61, 37, dtype=torch.bfloat16)
    linear(torch.randn(64, 61, dtype=torch.bfloat16))
    assert calls["padded_linear"] == 1
    linear(torch.randn(65, 61, dtype=torch.bfloat16))
    assert calls["padded_linear"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 70])
def test_forward_and_backward_compile_to_one_graph(rows: int):
    torch.compiler.reset()
    linear, x = PaddedLinear(61, 37), torch.randn(rows, 61)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    plain = nn.Linear(61, 37)
    plain.load_state_dict(linear.state_dict())
    exact = copy.deepcopy(plain).double()
    results, gradients = [], []
    for module, weight in ((compiled, linear.weight), (plain, plain.weight), (exact, exact.weight)):
        results.append(module(x.to(weight.dtype)))
        results[-1].pow(2).sum().backward()
        gradients.append(weight.grad)
    assert_no_worse_than_torch(*gradients)
    assert_no_worse_than_torch(*(result.detach() for result in results))


def test_lora_wraps_it_trains_and_merges():
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "down_proj"]
    models = []
    for model in (with_padded_linears(small_model()), small_model()):
        torch.manual_seed(seeds.seed(1))
        models.append(peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False)))
    ours, theirs = models
    models.append(copy.deepcopy(theirs).double())
    assert isinstance(ours.base_model.model.model.layers[0].mlp.down_proj.base_layer, PaddedLinear)
    trained = []
    for model in models:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(2):
            batch = ids(2, 9, seed=step)
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
        trained.append([p.detach() for p in model.parameters() if p.requires_grad])
    for adapters in zip(*trained, strict=True):
        assert_model_no_worse(*adapters)
    assert_model_no_worse(*(run(model.merge_and_unload().eval()) for model in models))


def test_an_accelerated_model_fuses_it_like_any_linear(calls):  # noqa: F811
    theirs = small_model("llama with biases")
    ours = pyprune.accelerate(with_padded_linears(copy.deepcopy(theirs)))
    check(ours, theirs)
    assert calls["norm_gate_up"] == 3


def test_the_linear_inside_an_adapter_is_accelerated_and_restored(calls):  # noqa: F811
    peft = pytest.importorskip("peft")
    torch.manual_seed(seeds.seed(1))
    config = peft.LoraConfig(r=3, target_modules=["up_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(small_model(), config).eval()
    classes = [type(module) for module in model.modules()]
    plain = copy.deepcopy(model)
    before = calls["padded_linear"]
    check(pyprune.accelerate(model), plain)
    assert calls["padded_linear"] == before + 7, "two in each of three layers, and the head"
    assert [type(module) for module in pyprune.restore(model).modules()] == classes


def test_a_model_saved_with_it_loads_as_any_other(tmp_path):
    model = with_padded_linears(small_model("llama, tied head"))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert state.keys() == model.state_dict().keys()


def weights(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, PaddedLinear)]


def test_a_whole_model_keeps_its_padding_through_a_cast():
    model = with_padded_linears(small_model()).to(torch.bfloat16)
    assert weights(model)
    assert all(has_padded_stride(weight.data) for weight in weights(model))
    assert all(ops.pad_stride(weight.data).stride() == weight.stride() for weight in weights(model))
