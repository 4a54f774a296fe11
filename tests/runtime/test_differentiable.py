"""The blockwise backward pass and the checkpointed loss against plain autograd through transformers' model."""

import pytest
import torch

import pyprune
from pyprune.models.names import hf_name
from pyprune.models.transformers_model import to_transformers
from pyprune.pruning import Pruning, apply
from pyprune.runtime.differentiable import block_gradients, loss
from tests import seeds
from tests.judge import with_exact_norms

SHAPE = "shape:hidden=24,blocks=3,heads=6,kv_heads=2,head_dim=6,ffn=17,vocab=53"
FAMILIES = ["", ",family=mistral,window=5", ",family=qwen2,window=5,full_blocks=1", ",family=qwen3", ",tied=1"]


def ids(samples=3, tokens=9, vocab=53):
    return torch.randint(0, vocab, (samples, tokens), generator=seeds.generator(5))


def padding(input_ids):
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    mask[0, 6:] = False
    mask[2, 5:] = False  # with a window of 5, eager attention gives NaN to a padding row that sees no token
    return mask


def assert_near(actual, expected):
    assert float((actual - expected).norm()) <= 1e-12 * float(expected.norm())


def reference(decoder, input_ids, mask=None):
    """Summed loss and its gradients by transformers' model in float64, under the decoder's names."""
    model = with_exact_norms(to_transformers(decoder.to(torch.float64), "sdpa"))
    states = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: states.append(given[0]) or given[0].retain_grad())
    logits = model(input_ids, attention_mask=None if mask is None else mask.long()).logits[:, :-1]
    targets = input_ids[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), -100)
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    total.backward()
    found = dict(model.named_parameters())
    names = [name for name, _ in decoder.tensors() if name.startswith("blocks.")]
    return total.item(), {name: found[hf_name(name)].grad for name in names}, states, int((targets != -100).sum())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda name: name or "llama")
def test_weight_and_stream_gradients_are_autograds(family, masked):
    decoder = pyprune.load(SHAPE + family).to(torch.float64)
    input_ids = ids()
    mask = padding(input_ids) if masked else None
    _, weights, states, _ = reference(decoder, input_ids, mask)
    blocks = [found.block.index for found in block_gradients(decoder, input_ids, mask)]
    assert blocks == [2, 1, 0]
    for found in block_gradients(decoder, input_ids, mask, scale=0.5):
        place = found.block.index
        assert {f"blocks.{place}.{name}" for name in found.weights} == {
            name for name in weights if name.startswith(f"blocks.{place}.")
        }
        for name, gradient in found.weights.items():
            assert_near(gradient, 0.5 * weights[f"blocks.{place}.{name}"])
        shown = slice(None) if mask is None else mask
        assert_near(found.states[0][shown], states[place].detach()[shown])
        assert_near(found.slopes[0][shown], 0.5 * states[place].grad[shown])


def test_channel_gates_are_finite_differences():
    decoder = pyprune.load(SHAPE).to(torch.float64)
    input_ids, step = ids(samples=2), 1e-5
    found = {one.block.index: one for one in block_gradients(decoder, input_ids)}

    def gated(block, half, channel, gate):
        blocks = list(decoder.blocks)
        part = getattr(blocks[block], half)
        name = "o" if half == "mha" else "down"
        weight = getattr(part, name).weight.clone()
        weight[:, channel] *= gate
        part = pyprune.models.decoder.replace(part, **{name: pyprune.models.Linear(weight)})
        blocks[block] = pyprune.models.decoder.replace(blocks[block], **{half: part})
        changed = pyprune.models.decoder.replace(decoder, blocks=tuple(blocks))
        return torch.stack([8 * loss(changed, sample.unsqueeze(0)) for sample in input_ids])

    for block, half, channel in [(0, "mha", 5), (1, "ffn", 16), (2, "mha", 35), (2, "ffn", 0)]:
        expected = (gated(block, half, channel, 1 + step) - gated(block, half, channel, 1 - step)) / (2 * step)
        torch.testing.assert_close(found[block].channels[half][:, channel], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_the_checkpointed_loss_and_its_gradients(masked):
    decoder = pyprune.load(SHAPE + ",family=qwen2").to(torch.float64)
    input_ids = ids()
    mask = padding(input_ids) if masked else None
    total, weights, _, predicted = reference(decoder, input_ids, mask)
    decoder = decoder.map(lambda tensor: tensor.clone().requires_grad_())
    value = loss(decoder, input_ids, mask)
    assert value.item() == pytest.approx(total / predicted, rel=1e-6)
    value.backward()
    for name, tensor in decoder.tensors():
        if name in weights:
            assert_near(tensor.grad, weights[name] / predicted)
        assert tensor.grad is not None
        assert tensor.grad.any()


def test_missing_halves_are_passed_over():
    decoder = pyprune.load(SHAPE).to(torch.float64)
    decoder = apply(decoder, Pruning(mha=[1], ffn=[2]))
    _, weights, _, _ = reference(decoder, ids())
    for found in block_gradients(decoder, ids()):
        assert set(found.channels) == {0: {"mha", "ffn"}, 1: {"ffn"}, 2: {"mha"}}[found.block.index]
        for name, gradient in found.weights.items():
            assert_near(gradient, weights[f"blocks.{found.block.index}.{name}"])
    after = {found.block.index: found for found in block_gradients(decoder, ids())}
    assert torch.equal(after[1].states[0], after[1].states[1])
    assert torch.equal(after[2].slopes[1], after[2].slopes[2])


def test_only_weights_that_require_one_get_gradients_and_the_decoder_stays_as_it_was():
    decoder = pyprune.load(SHAPE, dtype=torch.bfloat16)
    found = list(block_gradients(decoder, ids(), requires_grad=lambda name: name == "mha.o.weight"))
    assert [set(one.weights) for one in found] == [{"mha.o.weight"}] * 3
    assert all(one.weights["mha.o.weight"].dtype == torch.float32 for one in found)
    assert not any(tensor.requires_grad for _, tensor in decoder.tensors())


def test_bfloat16_weights_are_differentiated_in_float32():
    decoder = pyprune.load(SHAPE, dtype=torch.bfloat16)
    exact = {one.block.index: one for one in block_gradients(decoder.to(torch.float64), ids())}
    for one in block_gradients(decoder, ids()):
        for name, gradient in one.weights.items():
            expected = exact[one.block.index].weights[name]
            assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_batches_add_up_to_all_samples():
    decoder = pyprune.load(SHAPE).to(torch.float64)
    whole = next(block_gradients(decoder, ids()))
    parts = [next(block_gradients(decoder, part)) for part in ids().split([1, 2])]
    for name, gradient in whole.weights.items():
        torch.testing.assert_close(sum(part.weights[name] for part in parts), gradient)
    torch.testing.assert_close(torch.cat([part.channels["ffn"] for part in parts]), whole.channels["ffn"])
