"""width by Wanda-sp: the published formula against its own computation in float64, and the sizes it is held to."""

import pytest
import torch

from pyprune.errors import InputError
from pyprune.models import load
from pyprune.models.decoder import Linear
from pyprune.pruning import Pruning, apply, layerwise, pad, wanda_sp, width
from pyprune.pruning.budget import UniformSizes, depth_row, width_for
from tests import seeds

WIDTH = 201
"""Neurons enough in the tiny decoder for one of them a block to be within 0.5 % of its parameters."""


@pytest.fixture
def ids():
    return torch.randint(0, 29, (5, 11), generator=seeds.generator(3))


def removed_by_definition(decoder, ids, groups_kept, neurons_kept, reference):
    """Wanda-sp written out: the lowest of each block, down to these numbers."""
    kv_groups, neurons = {}, {}

    def lowest(block, by_group, by_neuron):
        kv_groups[block.index] = by_group.argsort()[: block.mha.kv_heads - groups_kept].tolist()
        neurons[block.index] = by_neuron.argsort()[: block.ffn.width - neurons_kept].tolist()
        return kv_groups[block.index], neurons[block.index]

    follow(decoder, ids, reference, lowest)
    return kv_groups, neurons


def follow(decoder, ids, reference, choose):
    """For each block, `choose` is given it and its scores by the norms of the unpruned sublayers, and returns what
    goes: groups and neurons. The pruned block's output goes on."""
    x = decoder.embedding.double()[ids]
    for block in decoder.blocks:
        mha, ffn = block.mha, block.ffn
        context = reference.context(mha, x, decoder.rope)
        activation = reference.activation(ffn, x + reference.project(mha.o, context))
        heads = channel_scores(mha.o, context).view(mha.heads, mha.head_dim).sum(1)
        by_group = heads.view(mha.kv_heads, -1).sum(1)
        by_neuron = channel_scores(ffn.down, activation)
        groups, neurons = choose(block, by_group, by_neuron)
        # The pruned block, by zeroing the channels that go.
        per_group = mha.group * mha.head_dim
        for group in groups:
            context[..., group * per_group : (group + 1) * per_group] = 0
        x = x + reference.project(mha.o, context)
        activation = reference.activation(ffn, x)
        activation[..., neurons] = 0
        x = x + reference.project(ffn.down, activation)


def channel_scores(linear, inputs):
    norm = inputs.reshape(-1, inputs.shape[-1]).square().sum(0).sqrt()
    return linear.weight.double().abs().mean(0) * norm


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize("own", [{}, {"biases": True}, {"biases": True, "qk_norm": True, "window": 4}], ids=str)
def test_selection_is_the_formulas(make_decoder, reference, ids, heads, kv_heads, own):
    decoder = make_decoder(heads=heads, kv_heads=kv_heads, width=WIDTH, dtype=torch.float32, **own)
    sizes = UniformSizes.of(decoder)
    target = sizes.without(2)
    groups, neurons = width_for(sizes, target)
    pruning = width(decoder, target_parameters=target, calibration=ids)
    expected = removed_by_definition(decoder, ids, groups, neurons, reference)
    assert pruning == Pruning("tiny", (), (), (), *expected, None, "width wanda-sp")
    assert apply(decoder, pruning).parameters() == sizes.narrowed(groups, neurons)


def test_channel_scores_by_hand():
    linear = Linear(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    # mean(|1|, |3|) = 2 and mean(|-2|, |4|) = 3, times the norms.
    assert wanda_sp.channel_scores(linear, torch.tensor([5.0, 0.5]).double()).tolist() == [10.0, 1.5]


def test_pruned_output_feeds_the_next_layer(make_decoder, reference, ids):
    # Held apart from the variant that runs on the unpruned output: on this seed the two choose differently.
    decoder = make_decoder(width=WIDTH, dtype=torch.float32, seed=1)
    sizes = UniformSizes.of(decoder)
    target = sizes.without(2)
    _, neurons = width_for(sizes, target)
    unpruned = {}
    x = decoder.embedding.double()[ids]
    for block in decoder.blocks:
        mid = x + reference.project(block.mha.o, reference.context(block.mha, x, decoder.rope))
        scores = channel_scores(block.ffn.down, reference.activation(block.ffn, mid))
        unpruned[block.index] = tuple(sorted(scores.argsort()[: WIDTH - neurons].tolist()))
        x = reference.run_block(block, x, decoder.rope)
    pruning = width(decoder, target_parameters=target, calibration=ids)
    assert pruning.neurons[0] == unpruned[0]
    assert pruning.neurons != unpruned


def test_chunks_of_samples_give_the_same_pruning(make_decoder, ids, monkeypatch):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    whole = width(decoder, ratio=0.4, calibration=ids)
    sizes = []
    chunk = layerwise.chunk_of
    monkeypatch.setattr(layerwise, "CHUNK_FLOATS", 2 * 11 * WIDTH)
    monkeypatch.setattr(layerwise, "chunk_of", lambda *given: sizes.append(chunk(*given)) or sizes[-1])
    assert width(decoder, ratio=0.4, calibration=ids) == whole
    assert set(sizes) == {2}


def test_every_layer_keeps_the_same_numbers(make_decoder, ids):
    pruned = apply(
        decoder := make_decoder(width=WIDTH, dtype=torch.float32), width(decoder, ratio=0.3, calibration=ids)
    )
    assert len({(block.mha.kv_heads, block.ffn.width) for block in pruned.blocks}) == 1
    assert len(pruned.blocks) == 4


def test_ratio_is_matched_to_the_depth_row(make_decoder, ids):
    decoder = make_decoder(blocks=6, hidden=48, heads=6, kv_heads=6, head_dim=8, width=131, dtype=torch.float32)
    pruned = apply(decoder, width(decoder, ratio=0.3, calibration=ids))
    target = depth_row(UniformSizes.of(decoder), 0.3)
    assert abs(pruned.parameters() - target) <= 0.005 * target
    assert pruned.parameters() != decoder.parameters()


def test_align_keeps_the_budget_and_a_multiple(make_decoder, ids):
    decoder = make_decoder(hidden=32, width=400, dtype=torch.float32)
    assert apply(decoder, width(decoder, ratio=0.3, calibration=ids)).blocks[0].ffn.width == 302
    pruned = apply(decoder, width(decoder, ratio=0.3, calibration=ids, align=3))
    assert pruned.blocks[0].ffn.width == 303
    assert pruned.parameters() == pytest.approx(depth_row(UniformSizes.of(decoder), 0.3), rel=0.005)
    with pytest.raises(InputError, match="align 128"):
        width(decoder, ratio=0.3, calibration=ids, align=128)


def test_a_depth_pruned_decoder_is_narrowed_in_original_indices(make_decoder, ids):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    shorter = apply(decoder, Pruning(blocks=[1]))
    pruning = width(shorter, ratio=0.3, calibration=ids)
    assert set(pruning.neurons) == {0, 2, 3}
    assert len(apply(shorter, pruning).blocks) == 3


def test_narrowing_twice_stays_in_original_indices(make_decoder, ids):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    once = apply(decoder, width(decoder, ratio=0.2, calibration=ids))
    second = width(once, ratio=0.3, calibration=ids)
    first = once.pruning
    for layer, removed in second.neurons.items():
        assert not set(removed) & set(first.neurons[layer])
    twice = apply(once, second)
    both = apply(decoder, first | second)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(twice.tensors(), both.tensors(), strict=True))


def test_bfloat16_weights_select_by_the_formula(make_decoder, reference, ids):
    """Some processors multiply activations that are rounded to bfloat16: of two scores within that rounding, either one
    may be the lower."""
    decoder = make_decoder(width=WIDTH, dtype=torch.bfloat16)
    sizes = UniformSizes.of(decoder)
    groups, neurons = width_for(sizes, sizes.without(1))
    pruning = width(decoder, target_parameters=sizes.without(1), calibration=ids)

    def same_but_for_rounding(block, by_group, by_neuron):
        removed = pruning.kv_groups[block.index], pruning.neurons[block.index]
        assert [len(positions) for positions in removed] == [block.mha.kv_heads - groups, block.ffn.width - neurons]
        for positions, scores in zip(removed, (by_group, by_neuron), strict=True):
            stay = [place for place in range(len(scores)) if place not in positions]
            assert scores[list(positions)].max() <= scores[stay].min() * (1 + torch.finfo(torch.bfloat16).eps)
        return removed

    follow(decoder, ids, reference, same_but_for_rounding)


def test_padding_is_no_candidate(make_decoder, ids):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    assert width(pad(decoder, 8), ratio=0.3, calibration=ids) == width(decoder, ratio=0.3, calibration=ids)


def test_the_decoder_is_left_as_it_was(make_decoder, ids):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    before = [tensor.clone() for _, tensor in decoder.tensors()]
    width(decoder, ratio=0.3, calibration=ids)
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, decoder.tensors(), strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "magic"}, "'magic'"),
        ({"ratio": None}, "exactly one"),
        ({"target_parameters": 100}, "exactly one"),
        ({"ratio": 1.2}, r"ratio 1\.2"),
        ({"ratio": 0.0}, r"ratio 0\.0"),
        ({"ratio": 0.999}, "ratio"),
        ({"align": 0}, "align 0"),
        ({"calibration": None}, "calibration none"),
        ({"calibration": [[1, 2]]}, "calibration list"),
        ({"calibration": torch.zeros(2, 3)}, "float32"),
        ({"calibration": torch.zeros(3, dtype=torch.long)}, r"\[3\]"),
        ({"calibration": torch.zeros(0, 3, dtype=torch.long)}, r"\[0, 3\] given"),
        ({"calibration": torch.full((1, 3), 29)}, "id 29 given; 0 to 28"),
        ({"calibration": torch.full((1, 3), -1)}, "id -1"),
        ({"calibration": torch.zeros(1, 65, dtype=torch.long)}, "65 tokens"),
    ],
)
def test_bad_requests_are_refused_by_their_value(make_decoder, ids, change, named):
    arguments = {"method": "wanda-sp", "ratio": 0.3, "calibration": ids} | change
    with pytest.raises(InputError, match=named):
        width(make_decoder(width=WIDTH, dtype=torch.float32), **arguments)


def test_blocks_that_lack_a_half_are_narrowed_in_the_other(make_decoder, ids):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    ragged = apply(decoder, Pruning(mha=[2], ffn=[1]))
    pruning = width(ragged, ratio=0.3, calibration=ids)
    assert set(pruning.kv_groups) == {0, 1, 3}
    assert set(pruning.neurons) == {0, 2, 3}
    narrowed = apply(ragged, pruning)
    target = ragged.parameters() - sum(t.numel() for _, t in ragged.blocks[0].tensors())
    assert narrowed.parameters() == pytest.approx(target, rel=0.005)


def test_a_loaded_transformers_model_is_narrowed_and_left_unchanged(ids):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=WIDTH, vocab_size=29, max_position_embeddings=64))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruning = width(model, ratio=0.3, calibration=ids)
    assert pruning == width(load(model), ratio=0.3, calibration=ids)
    assert set(pruning.neurons) == {0, 1, 2}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_specification_is_loaded(ids):
    pruning = width("shape:tiny", ratio=0.3, calibration=ids)
    assert pruning == width(load("shape:tiny"), ratio=0.3, calibration=ids)
    assert pruning.model == "shape:tiny"


def test_token_ids_of_any_integer_type_select_alike(make_decoder, ids):
    decoder = make_decoder(width=WIDTH, dtype=torch.float32)
    assert width(decoder, ratio=0.3, calibration=ids.int()) == width(decoder, ratio=0.3, calibration=ids)


@pytest.mark.parametrize("first", [Pruning(blocks=[1]), Pruning(pad_to=8)], ids=["blocks", "padding alone"])
def test_narrowings_of_a_reloaded_checkpoint_compose_with_its_record(ids, tmp_path, first):
    decoder = load("shape:tiny")
    apply(decoder, first).save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    pruning = width(again, ratio=0.3, calibration=ids)
    assert pruning.model == "shape:tiny"
    twice, both = apply(again, pruning), apply(decoder, again.pruning | pruning)
    assert twice.pruning == both.pruning
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(twice.tensors(), both.tensors(), strict=True))


def test_a_model_too_small_for_the_tolerance_is_refused_with_the_distance(make_decoder, ids):
    with pytest.raises(InputError, match=r"FFN width \d+ gives \d+ parameters, [\d.]+% from the target of"):
        width(make_decoder(dtype=torch.float32), ratio=0.3, calibration=ids)
