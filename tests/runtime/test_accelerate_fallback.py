"""Where operators cannot stand in for transformers' own code, that code runs: hooks, gradients, LoRA, odd masks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import pyprune
from pyprune.runtime import rows
from tests import seeds
from tests.judge import assert_as_near_as, assert_model_no_worse, in_float64
from tests.runtime.test_accelerate import FAMILIES, calls, check, generate, ids, pair, run, small_model

__all__ = ["calls"]

ATTENTION, FFN = "norm_qkv_rope", "norm_gate_up"
LAYERS = 3


@pytest.mark.parametrize(
    ("inner", "attends", "feeds"),
    [
        ("self_attn.q_proj", 2, 3),
        ("self_attn.o_proj", 2, 3),
        ("self_attn.k_norm", 2, 3),
        ("self_attn", 2, 3),
        ("input_layernorm", 2, 3),
        ("post_attention_layernorm", 3, 2),
        ("mlp", 3, 2),
        ("mlp.down_proj", 3, 2),
        ("mlp.act_fn", 3, 2),
        ("", 3, 3),
    ],
)
@pytest.mark.parametrize("kind", ["hook", "pre-hook"])
def test_hooks_on_inner_modules_fire_and_count(calls, kind: str, inner: str, attends: int, feeds: int):
    """The half of the layer that holds the module runs as it was; a hook on the layer itself is called either way."""
    ours, theirs = pair()
    seen: list[int] = []

    def attach(model: nn.Module):
        module = model.model.layers[1].get_submodule(inner)
        if kind == "hook":
            return module.register_forward_hook(lambda m, args, out: seen.append(1))
        return module.register_forward_pre_hook(lambda m, args: seen.append(1))

    handle = attach(ours)
    attach(theirs)
    run(theirs)
    assert seen == [1]
    result = run(ours)
    assert seen == [1, 1]
    assert (calls[ATTENTION], calls[FFN]) == (attends, feeds)
    assert_as_near_as(result, theirs, run)
    handle.remove()
    run(ours)
    assert (calls[ATTENTION], calls[FFN]) == (attends + 3, feeds + 3)


def test_a_hook_may_change_what_it_sees():
    ours, theirs = pair()
    for model in (ours, theirs):
        model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, args, out: out * 3)
        model.model.layers[2].self_attn.v_proj.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        model.model.layers[1].register_forward_hook(lambda m, args, out: out + 0.5)
    check(ours, theirs)


def test_global_hooks_see_every_module(calls):
    ours, theirs = pair()
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    try:
        run(ours)
        first, seen[:] = list(seen), []
        run(theirs)
    finally:
        handle.remove()
    assert first == seen
    assert "Linear" in seen
    assert calls[ATTENTION] == 0


def test_a_forward_set_on_a_module_is_called(calls):
    """As the accelerate and kernels libraries do it."""
    ours, _ = pair()
    module = ours.model.layers[0].mlp
    module.forward = lambda x: torch.zeros_like(x)
    assert not torch.allclose(run(ours), run(pair()[1]), atol=1e-2)
    assert (calls[ATTENTION], calls[FFN]) == (3, 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_and_attentions_are_those_of_transformers(calls, attention: str):
    ours, theirs = pair()
    for model in (ours, theirs):
        model.set_attn_implementation(attention)
    wanted = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    exact = in_float64(theirs)
    with torch.no_grad():
        out = [model(ids(2, 5), **wanted) for model in (ours, theirs, exact)]
    for states in zip(*(one.hidden_states for one in out), strict=True):
        assert_model_no_worse(*states)
    for weights in zip(*(one.attentions or () for one in out), strict=True):
        assert_model_no_worse(*weights)
    assert calls[ATTENTION] == (0 if attention == "eager" else 3)
    if attention == "eager":
        for model in (ours, theirs, exact):
            model.config.output_attentions = True
        with torch.no_grad():
            found = [model(ids(2, 5)).attentions for model in (ours, theirs, exact)]
        assert len(found[0]) == LAYERS
        for weights in zip(*found, strict=True):
            assert_model_no_worse(*weights)
        for model in (ours, theirs):
            model.config.output_attentions = False
    # The hooks that transformers leaves behind are idle from now on.
    before = calls[ATTENTION]
    check(ours, theirs)
    assert calls[ATTENTION] == before + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_bits(calls, family: str):
    ours, theirs = pair(family)
    batch = ids(2, 9)
    for model in (ours, theirs):
        model.train()
        model(batch, labels=batch).loss.backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert not any(calls.values())


@pytest.mark.parametrize("reentrant", [True, False])  # reentrant: layers run with gradients off first
def test_training_steps_with_gradient_checkpointing_give_the_same_weights(reentrant: bool):
    ours, theirs = pair("llama")
    for model in (ours, theirs):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            batch = ids(2, 9, seed=step)
            optimizer.zero_grad()
            model(batch, labels=batch, use_cache=False).loss.backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_of_inputs_to_a_frozen_model():
    grads = []
    for model in pair():
        model.requires_grad_(False)
        embedded = model.model.embed_tokens(ids(1, 6)).requires_grad_()
        model(inputs_embeds=embedded).logits.square().sum().backward()
        grads.append(embedded.grad)
    assert torch.equal(*grads)


def test_dropout_in_training_mode_drops(calls):
    ours, _ = pair(attention_dropout=0.5)
    ours.train()
    assert not torch.equal(run(ours), run(ours))
    assert calls[ATTENTION] == 0
    ours.eval()
    assert torch.equal(run(ours), run(ours))
    assert calls[ATTENTION] == 6


def test_autocast_is_left_to_torch(calls):
    ours, theirs = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(ours), run(theirs))
    assert not any(calls.values())


def test_float64_is_left_to_torch(calls):
    ours, theirs = (model.double() for model in pair())
    assert torch.equal(run(ours), run(theirs))
    assert not any(calls.values())


def test_a_projection_of_another_dtype_keeps_its_half_as_it_was(calls):
    class Widening(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double()).float()

    ours, theirs = pair()
    for model in (ours, theirs):
        old = model.model.layers[1].mlp.down_proj
        new = Widening(old.in_features, old.out_features, bias=False, dtype=torch.float64)
        new.weight.data.copy_(old.weight)
        model.model.layers[1].mlp.down_proj = new
    check(ours, theirs)
    assert (calls[ATTENTION], calls[FFN]) == (3, 2)


def test_weights_of_a_kind_of_their_own_are_left_as_they_are(calls):
    """Quantised and sharded weights are subclasses of Tensor."""

    class Marked(Tensor):
        pass

    ours, theirs = pair("llama")
    for model in (ours, theirs):
        for layer in model.model.layers[:2]:
            layer.self_attn.v_proj.weight = nn.Parameter(layer.self_attn.v_proj.weight.data.as_subclass(Marked))
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.as_subclass(Marked))
    result = run(ours)
    assert (calls[ATTENTION], calls[FFN], calls["padded_linear"]) == (1, 3, 0)
    assert_as_near_as(result, theirs, run, exact=in_float64(small_model("llama")))


@pytest.mark.parametrize(
    ("inner", "parameter", "attends", "feeds", "heads"),
    [
        ("model.layers.1.self_attn.k_proj", "weight", 2, 3, 1),
        ("model.layers.1.self_attn.k_proj", "bias", 2, 3, 1),
        ("model.layers.1.input_layernorm", "weight", 2, 3, 1),
        ("model.layers.1.mlp.down_proj", "weight", 3, 2, 1),
        ("model.layers.1.mlp.down_proj", "bias", 3, 2, 1),
        ("lm_head", "weight", 3, 3, 0),
    ],
)
def test_weights_whose_rows_are_not_contiguous_are_left_to_torch(calls, inner, parameter, attends, feeds, heads):
    """Such as nn.Parameter(conv1d.weight.T)."""
    ours, theirs = pair("llama with biases")
    for model in (ours, theirs):
        module = model.get_submodule(inner)
        given = getattr(module, parameter).data
        apart = given.T.contiguous().T if given.dim() == 2 else torch.stack((given, given), dim=1)[:, 0]
        setattr(module, parameter, nn.Parameter(apart))
    check(ours, theirs)
    assert (calls[ATTENTION], calls[FFN], calls["padded_linear"]) == (attends, feeds, heads)


def test_other_activations_run_as_they_were(calls):
    ours, theirs = pair("llama", hidden_act="gelu")
    check(ours, theirs)
    assert (calls[ATTENTION], calls[FFN]) == (3, 0)


def test_a_norm_with_an_epsilon_of_its_own_runs_as_it_was(calls):
    ours, theirs = pair("qwen3")
    for model in (ours, theirs):
        model.model.layers[0].self_attn.k_norm.variance_epsilon = 0.5
    check(ours, theirs)
    assert calls[ATTENTION] == 2


def half_as_sharp(module: nn.Module, query: Tensor, *args: object, **options: object) -> tuple[Tensor, None]:
    return sdpa_attention_forward(module, query / 2, *args, **options)


@pytest.mark.parametrize("name", ["half_as_sharp", "sdpa"])
def test_an_attention_function_of_the_user_s_is_called(calls, monkeypatch, name: str):
    monkeypatch.setitem(AttentionInterface._global_mapping, name, half_as_sharp)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, sdpa_mask)
    ours, theirs = pair("llama")
    plain = run(theirs)
    for model in (ours, theirs):
        model.set_attn_implementation(name)
    check(ours, theirs)
    assert name == "sdpa" or not torch.allclose(run(ours), plain, atol=1e-2)
    assert calls[ATTENTION] == 0


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_any_pattern_are_obeyed(kind: str):
    ours, theirs = pair()
    seen = torch.rand(2, 1, 5, 5, generator=seeds.generator(1)) > 0.4
    seen |= torch.eye(5, dtype=torch.bool)
    mask = seen if kind == "bool" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    soft = torch.randn(2, 1, 5, 5).tril() + torch.full((5, 5), float("-inf")).triu(1)
    for given in (mask, soft):

        def masked(model: nn.Module, given: Tensor = given) -> Tensor:
            return run(model, attention_mask=given if given.dtype == torch.bool else given.to(model.dtype))

        assert_as_near_as(masked(ours), theirs, masked)


@pytest.mark.parametrize("tokens", [5, 40])
def test_packed_sequences_do_not_see_each_other(tokens: int):
    ours, theirs = pair()
    positions = torch.cat((torch.arange(3), torch.arange(tokens - 3)))[None].expand(2, -1)
    given = {"position_ids": positions, "use_cache": False}
    check(ours, theirs, tokens, **given)


@pytest.mark.parametrize("where", ["config", "attention", "both", "argument"])
@pytest.mark.parametrize("padding", [0, 2])
def test_attention_that_is_not_causal_stays_so(where: str, padding: int):
    ours, theirs = pair()
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, :padding] = 0
    given = {"use_cache": False, "attention_mask": mask}
    causal = run(theirs, **given)
    for model in (ours, theirs):
        if where == "argument":
            given["is_causal"] = False
        if where in ("config", "both"):
            model.config.is_causal = False
        if where in ("attention", "both"):
            for layer in model.model.layers:
                layer.self_attn.is_causal = False
    check(ours, theirs, **given)
    assert where == "attention" or not torch.allclose(run(ours, **given), causal, atol=1e-2)


def test_every_sequence_has_positions_of_its_own():
    """RoPE sees differences alone, so only uneven steps tell one sequence's positions from another's."""
    ours, theirs = pair()
    steps = torch.randint(1, 9, (2, 5), generator=seeds.generator(2))
    given = {"position_ids": steps.cumsum(1), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    check(ours, theirs, **given)
    assert not torch.allclose(run(ours, **given), run(ours), atol=1e-2)


@pytest.mark.parametrize("units", [True, False])
def test_many_rows_in_half_precision_are_torch_s_where_it_is_faster(calls, monkeypatch, units: bool):
    monkeypatch.setitem(rows.MAX_LAYER_ROWS, torch.bfloat16, rows.SKINNY_ROWS if units else None)
    model = pyprune.accelerate(small_model().to(torch.bfloat16))
    run(model, 32)
    assert calls[FFN] == LAYERS
    run(model, 33)
    assert calls[FFN] == (LAYERS if units else 2 * LAYERS)
    run(model.float(), 33)
    assert calls[FFN] == (2 * LAYERS if units else 3 * LAYERS)


def test_a_layer_called_by_hand_runs_as_it_was(calls):
    ours, theirs = pair("llama")
    x = torch.randn(1, 4, 48)
    with torch.no_grad():
        rotation = theirs.model.rotary_emb(x, torch.arange(4)[None])
        results = [model.model.layers[0](x, position_embeddings=rotation) for model in (ours, theirs)]
    assert torch.equal(*results)
    assert calls[ATTENTION] == 0


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0, "init_lora_weights": False}


def lora(model: nn.Module, **changes: object) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seeds.seed(3))
    return peft.get_peft_model(model, peft.LoraConfig(**{**LORA, **changes}))


@pytest.mark.parametrize("first", ["lora", "accelerate"])
@pytest.mark.parametrize(
    ("targets", "attends", "feeds"),
    [(["q_proj", "v_proj"], 0, 3), (["o_proj"], 0, 3), (["up_proj"], 3, 0), ("all-linear", 0, 0)],
    ids=str,
)
def test_lora_layers_run_and_the_rest_is_fused(calls, first: str, targets, attends: int, feeds: int):
    theirs = lora(small_model(), target_modules=targets).eval()
    if first == "lora":
        ours = pyprune.accelerate(lora(small_model(), target_modules=targets)).eval()
    else:
        ours = lora(pyprune.accelerate(small_model()), target_modules=targets).eval()
    check(ours, theirs)
    assert (calls[ATTENTION], calls[FFN]) == (attends, feeds)
    prompt = ids(2, 6)
    tokens = [generate(model, prompt, torch.ones_like(prompt)) for model in (ours, theirs)]
    assert torch.equal(*tokens)
    with ours.disable_adapter(), theirs.disable_adapter():
        check(ours, theirs)
    before = calls[ATTENTION]
    merged = ours.merge_and_unload()
    check(merged, theirs)
    assert calls[ATTENTION] == before + 3
    assert [type(m) for m in pyprune.restore(merged).modules()] == [type(m) for m in small_model().modules()]


def test_lora_training_gives_the_same_adapters():
    trained = []
    for model in (lora(pyprune.accelerate(small_model())), lora(small_model())):
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(2):
            batch = ids(2, 9, seed=step)
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
        trained.append({name: p for name, p in model.named_parameters() if p.requires_grad})
    assert trained[0].keys() == trained[1].keys()
    assert len(trained[0]) == 12
    for name, weight in trained[0].items():
        assert torch.equal(weight, trained[1][name]), name


def test_restoring_a_model_with_lora_keeps_the_adapters():
    theirs = lora(small_model()).eval()
    expected, classes = run(theirs), [type(m) for m in theirs.modules()]
    pyprune.restore(pyprune.accelerate(theirs))
    assert torch.equal(run(theirs), expected)
    assert [type(m) for m in theirs.modules()] == classes


def test_prefix_tuning_runs():
    peft = pytest.importorskip("peft")
    models = []
    for model in pair("llama"):
        torch.manual_seed(seeds.seed(4))
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        models.append(peft.get_peft_model(copy.deepcopy(model), config).eval())
    check(*models)
