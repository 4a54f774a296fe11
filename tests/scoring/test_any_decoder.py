"""Families that pyprune does not know, run through their own layers, against one forward pass for every layer."""

from __future__ import annotations

import pytest
import torch

from pyprune import InputError, Pruning, TransformersDecoder, apply, depth, load_any, perplexity, score, search
from pyprune.scoring.layer_gradients import layer_gradients
from tests.families.models import (
    EXPERTS_PER_TOKEN,
    FAMILIES,
    OURS,
    ids,
    naive_perplexity,
    naive_scores,
    random_model,
    right_padding,
    smallest_router_margin,
    without_layers,
)

TOLERANCE = 1e-4


def furthest(values, expected):
    return max(abs(value / other - 1) for value, other in zip(values, expected, strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return random_model(family)


@pytest.mark.parametrize("padded", [False, True])
def test_block_scores_are_those_of_the_naive_loop(family, model, padded):
    input_ids = ids()
    mask = right_padding(input_ids) if padded else None
    if family in EXPERTS_PER_TOKEN:
        assert smallest_router_margin(model, input_ids, mask, EXPERTS_PER_TOKEN[family]) > 1e-4
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict()

    scores = score(model, input_ids, attention_mask=mask)

    expected = naive_scores(model, input_ids, mask)
    assert furthest([scores.baseline, *scores.values], expected) < TOLERANCE
    assert len(set(expected)) == 5  # each layer matters
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == settings
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral", "gpt2", "llama4_text"])
def test_a_greedy_search_is_that_of_the_naive_loop(name):
    model, input_ids = random_model(name), ids(2)
    result = search(model, input_ids, "greedy", count=2)
    removed = []
    for step in result.steps:
        values = {}
        for index in {0, 1, 2, 3} - set(removed):
            with without_layers(model, *removed, index):
                values[index] = naive_perplexity(model, input_ids)
        best = min(values, key=values.get)
        assert step.removed == (("block", best),)
        assert abs(step.score / values[best] - 1) < TOLERANCE
        removed.append(best)


def test_all_blocks_but_the_protected_ones_can_go():
    model = random_model("olmo2")
    result = search(model, ids(2), "greedy", count=2, protect=[0, 1])
    assert sorted(result.order) == [("block", 2), ("block", 3)]


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt2"])
def test_work_in_parts_gives_the_same(name):
    model, input_ids = random_model(name), ids()
    whole, parts = (score(model, input_ids, memory=memory) for memory in (None, 26 << 20))
    assert furthest(parts.values, whole.values) < TOLERANCE


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("ppl", {}),
        ("taylor", {}),
        ("taylor", {"salience": "mixed"}),
        ("taylor", {"within": "max"}),
        ("first-order-ppl", {}),
        ("magnitude", {"within": "max"}),
        ("weight-norm", {}),
        ("block-influence", {}),
        ("angular", {"tokens": "last"}),
        ("relative-magnitude", {}),
        ("random", {}),
    ],
)
def test_our_own_families_get_the_numbers_of_the_fast_path(name, criterion, options):
    model, input_ids = random_model(name), ids()
    mask = right_padding(input_ids)
    fast = score(model, input_ids, criterion, attention_mask=mask, **options)
    own_layers = score(TransformersDecoder.of(model), input_ids, criterion, attention_mask=mask, **options)
    assert furthest([1 + v for v in own_layers.values], [1 + v for v in fast.values]) < TOLERANCE
    assert own_layers.order() == fast.order()
    assert (own_layers.parameters, own_layers.unit_parameters) == (fast.parameters, fast.unit_parameters)


@pytest.mark.parametrize("name", ["gemma3_text", "mixtral", "gpt2"])
def test_taylor_is_the_gradient_of_the_model_itself(name):
    model, input_ids = random_model(name), ids()
    scores = score(model, input_ids, "taylor")
    logits = model(input_ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:]).backward()
    base = getattr(model, "model", None) or model.transformer
    layers = getattr(base, "layers", None) or base.h
    expected = [
        sum(
            float((parameter.detach().double() * parameter.grad.double()).abs().sum())
            for name, parameter in layer.named_parameters()
            if not name.endswith("bias") and parameter.grad is not None
        )
        for layer in layers
    ]
    assert furthest(scores.values, expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_16_bits_do_not_vanish_in_the_mean_over_many_tokens(dtype):
    """A thousandth and a millionth of the sum's gradients are the same but for the factor."""
    decoder, input_ids = TransformersDecoder.of(random_model("gpt2").to(dtype)), ids()

    def gradients(scale):
        found = layer_gradients(decoder, input_ids, scale=scale, requires_grad=lambda name: name.endswith("weight"))
        return {(g.block.index, name): tensor for g in found for name, tensor in g.weights.items()}

    large, small = gradients(1e-3), gradients(1e-6)
    assert large.keys() == small.keys()
    for name, gradient in large.items():
        assert gradient.dtype == torch.float32
        assert float(gradient.norm()) > 0
        torch.testing.assert_close(small[name] * 1e3, gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["gemma2", "qwen3_moe"])
def test_window_searches_and_faithful_variants_run(name):
    model, input_ids = random_model(name), ids(2)
    assert len(search(model, input_ids, "window", count=2).order) == 2
    assert len(search(model, input_ids, "window", count=2, criterion="angular").order) == 2
    assert len(search(model, input_ids, "one-shot", count=2, criterion="block-influence").order) == 2
    assert len(score(model, input_ids, "block-influence", variant="faithful").values) == 4


@pytest.mark.parametrize("name", ["gemma2", "qwen3_moe", "gpt_neox"])
def test_bfloat16_weights_give_the_perplexity_of_the_model_in_bfloat16(name):
    model, input_ids = random_model(name, torch.bfloat16), ids()
    exact = naive_perplexity(random_model(name, torch.bfloat16).float(), input_ids)
    own = abs(naive_perplexity(model, input_ids) / exact - 1)
    assert abs(perplexity(model, input_ids) / exact - 1) < 2 * own + 2e-3


def test_a_pruned_model_has_the_perplexity_that_was_scored(model):
    input_ids = ids()
    scores = score(model, input_ids)
    pruning = depth(scores, count=1)
    smaller = apply(load_any(model), pruning)
    assert abs(naive_perplexity(smaller.model, input_ids) / min(scores.values) - 1) < TOLERANCE
    again = score(smaller, input_ids)
    assert [index for _, index in again.units] == [index for index in range(4) if index not in pruning.blocks]
    assert abs(again.baseline / min(scores.values) - 1) < TOLERANCE
    with pytest.raises(InputError, match="all 3 blocks are removed"):
        apply(smaller, Pruning(blocks=[0, 1, 2, 3]))


def test_what_cannot_be_scored_is_refused():
    model = random_model("phi3")
    with pytest.raises(InputError, match="runs through its own layers; 'block' is accepted"):
        score(model, ids(), unit="mha")
    with pytest.raises(InputError, match="input_ids"):
        score(model, torch.full((2, 4), 67))
    with pytest.raises(InputError, match="memory"):
        score(model, ids(), memory=1 << 20)
