"""apply and pad: what the permanent pruning computes, shares and records."""

from dataclasses import replace

import pytest
import torch

from pyprune.errors import InputError
from pyprune.models.decoder import Block
from pyprune.pruning import Pruning, apply, pad
from tests import seeds


def named(decoder):
    return dict(decoder.tensors())


def assert_same_decoder(one, other):
    assert [block.index for block in one.blocks] == [block.index for block in other.blocks]
    assert one.pruning == other.pruning
    left, right = named(one), named(other)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    for block, twin in zip(one.blocks, other.blocks, strict=True):
        if block.mha is not None:
            assert (block.mha.heads, block.mha.kv_heads) == (twin.mha.heads, twin.mha.kv_heads)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 3), (3, 3), (6, 1)])
def test_narrowed_attention_equals_zeroed_channels(make_decoder, reference, heads, kv_heads, biases):
    decoder = make_decoder(heads=heads, kv_heads=kv_heads, biases=biases, qk_norm=biases, window=3 * biases)
    removed = [1] if kv_heads == 3 else []
    pruned = apply(decoder, Pruning(kv_groups={2: removed}))
    x = torch.randn(2, 7, 16, dtype=torch.float64, generator=seeds.generator(1))
    unpruned, narrow = decoder.blocks[2].mha, pruned.blocks[2].mha
    context = reference.context(unpruned, x, decoder.rope)
    per_group = heads // kv_heads * 4
    for group in removed:
        context[..., group * per_group : (group + 1) * per_group] = 0
    expected = reference.project(unpruned.o, context)
    actual = reference.project(narrow.o, reference.context(narrow, x, decoder.rope))
    assert narrow.kv_heads == kv_heads - len(removed)
    assert narrow.heads == heads // kv_heads * narrow.kv_heads
    assert narrow.window == unpruned.window
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("pad_to", [None, 8])
def test_narrowed_ffn_equals_zeroed_channels(make_decoder, reference, biases, pad_to):
    decoder = make_decoder(biases=biases)
    removed = [0, 5, 12]
    pruned = apply(decoder, Pruning(neurons={1: removed}, pad_to=pad_to))
    x = torch.randn(2, 7, 16, dtype=torch.float64, generator=seeds.generator(1))
    unpruned, narrow = decoder.blocks[1].ffn, pruned.blocks[1].ffn
    activation = reference.activation(unpruned, x)
    activation[..., removed] = 0
    expected = reference.project(unpruned.down, activation)
    actual = reference.project(narrow.down, reference.activation(narrow, x))
    assert narrow.width == (10 if pad_to is None else 16)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


def test_the_rows_and_columns_that_stay_are_the_original_ones(make_decoder):
    decoder = make_decoder(blocks=1, heads=4, kv_heads=2, head_dim=2, width=3, biases=True)
    original = decoder.blocks[0]
    pruned = apply(decoder, Pruning(kv_groups={0: [0]}, neurons={0: [1]})).blocks[0]
    assert decoder.blocks[0] is original
    # Group 0 of 2 holds query heads 0 and 1: rows 0..3 of q, columns 0..3 of o, rows 0..1 of k and v.
    for name, rows in (("q", slice(4, 8)), ("k", slice(2, 4)), ("v", slice(2, 4))):
        assert torch.equal(getattr(pruned.mha, name).weight, getattr(original.mha, name).weight[rows])
        assert torch.equal(getattr(pruned.mha, name).bias, getattr(original.mha, name).bias[rows])
    assert torch.equal(pruned.mha.o.weight, original.mha.o.weight[:, 4:])
    assert pruned.mha.o.bias is original.mha.o.bias
    for name in ("gate", "up"):
        assert torch.equal(getattr(pruned.ffn, name).weight, getattr(original.ffn, name).weight[[0, 2]])
        assert torch.equal(getattr(pruned.ffn, name).bias, getattr(original.ffn, name).bias[[0, 2]])
    assert torch.equal(pruned.ffn.down.weight, original.ffn.down.weight[:, [0, 2]])
    assert pruned.ffn.down.bias is original.ffn.down.bias


def test_removed_blocks_and_sublayers_are_passed_over(make_decoder, reference):
    decoder = make_decoder()
    ids = torch.arange(10).view(2, 5)
    pruned = apply(decoder, Pruning(blocks=[1], mha=[0], ffn=[3]))
    x = decoder.embedding[ids]
    b = decoder.blocks
    for block in (Block(0, None, b[0].ffn), b[2], Block(3, b[3].mha, None)):
        x = reference.run_block(block, x, decoder.rope)
    expected = x / (x.square().mean(-1, keepdim=True) + reference.eps).sqrt() * decoder.norm @ decoder.embedding.T
    torch.testing.assert_close(reference.logits(pruned, ids), expected, rtol=0, atol=1e-12)
    assert [block.index for block in pruned.blocks] == [0, 2, 3]


def test_the_original_is_untouched_and_whole_blocks_are_shared(make_decoder):
    decoder = make_decoder(biases=True)
    before = {name: tensor.clone() for name, tensor in decoder.tensors()}
    pruned = apply(decoder, Pruning(blocks=[0], kv_groups={1: [2]}, neurons={2: [3]}))
    for name, tensor in decoder.tensors():
        assert torch.equal(tensor, before[name])
    assert decoder.pruning is None
    assert pruned.embedding is decoder.embedding
    assert pruned.blocks[0].ffn is decoder.blocks[1].ffn
    assert pruned.blocks[1].mha is decoder.blocks[2].mha
    assert pruned.blocks[2] is decoder.blocks[3]


def test_narrowed_tensors_are_contiguous(make_decoder):
    pruned = apply(make_decoder(biases=True), Pruning(kv_groups={1: [0]}, neurons={1: [3], 2: [0, 12]}, pad_to=8))
    assert all(tensor.is_contiguous() for _, tensor in pruned.tensors())


@pytest.mark.parametrize("biases", [False, True])
def test_padding_does_not_change_the_logits(make_decoder, reference, biases):
    decoder = make_decoder(biases=biases)
    padded = pad(decoder, 8)
    ids = torch.arange(12).view(2, 6)
    for block, original in zip(padded.blocks, decoder.blocks, strict=True):
        ffn = block.ffn
        assert ffn.width == 16
        assert torch.equal(ffn.gate.weight[:13], original.ffn.gate.weight)
        assert not ffn.gate.weight[13:].any()
        assert not ffn.up.weight[13:].any()
        assert not ffn.down.weight[:, 13:].any()
        if biases:
            assert not ffn.gate.bias[13:].any()
            assert not ffn.up.bias[13:].any()
        assert block.mha is original.mha
    torch.testing.assert_close(reference.logits(padded, ids), reference.logits(decoder, ids), rtol=0, atol=1e-13)


def test_padding_to_a_width_that_fits_shares_everything(make_decoder):
    decoder = make_decoder(width=16)
    assert pad(decoder, 8).blocks[0] is decoder.blocks[0]


def test_padding_again_replaces_the_old_padding(make_decoder):
    decoder = make_decoder()
    assert_same_decoder(pad(pad(decoder, 8), 5), pad(decoder, 5))
    assert pad(pad(decoder, 8), 5).blocks[0].ffn.width == 15
    stripped = pad(pad(decoder, 8), 1)
    assert stripped.pruning is None or not (stripped.pruning.neurons or stripped.pruning.pad_to)
    for name, tensor in stripped.tensors():
        assert torch.equal(tensor, named(decoder)[name])


def test_pruning_a_padded_decoder_keeps_its_padding(make_decoder):
    decoder = make_decoder(biases=True)
    neurons = Pruning(neurons={0: [0, 1, 2, 3, 4, 12], 2: [12]})
    padded_first = apply(pad(decoder, 8), neurons)
    assert [block.ffn.width for block in padded_first.blocks] == [8, 16, 16, 16]
    assert_same_decoder(padded_first, pad(apply(decoder, neurons), 8))


PARTS = [
    Pruning(blocks=[1], made_by="a"),
    Pruning(mha=[0], neurons={0: [3], 2: [0, 7]}, made_by="b"),
    Pruning(kv_groups={2: [1], 3: [0, 2]}, neurons={2: [7, 12], 1: [0]}, made_by="c"),
    Pruning(ffn=[3], pad_to=4, made_by="d"),
]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_original_indices_compose_in_any_order(make_decoder, first, second):
    decoder = make_decoder(biases=True)
    one, other = PARTS[first], PARTS[second]
    together = apply(decoder, one | other)
    assert_same_decoder(apply(apply(decoder, one), other), together)
    assert_same_decoder(apply(apply(decoder, other), one), together)


def test_removing_again_what_is_gone_changes_nothing(make_decoder):
    once = apply(make_decoder(), PARTS[0] | PARTS[1] | PARTS[2] | PARTS[3])
    again = apply(once, PARTS[2] | PARTS[0])
    assert all(one is other for one, other in zip(once.blocks, again.blocks, strict=True))
    assert again.pruning == once.pruning


def test_the_record_is_the_json_form_of_all_that_is_gone(make_decoder):
    twice = apply(apply(make_decoder(), Pruning(blocks=[1])), Pruning(model="elsewhere", neurons={2: [4]}, pad_to=4))
    assert twice.pruning == Pruning(model="tiny", blocks=[1], neurons={2: [4]}, pad_to=4)


@pytest.mark.parametrize(
    ("first", "then", "named"),
    [
        (Pruning(blocks=[0, 1]), Pruning(blocks=[2, 3]), "all 4 blocks"),
        (Pruning(mha=range(4)), Pruning(ffn=range(4)), "all 4 blocks"),
        (Pruning(kv_groups={1: [0]}), Pruning(kv_groups={1: [1, 2]}), "all 3 kv_groups of block 1"),
        (Pruning(neurons={1: [0]}), Pruning(neurons={1: range(1, 13)}), "all 13 neurons of block 1"),
    ],
)
def test_two_prunings_that_leave_nothing_are_refused(make_decoder, first, then, named):
    half = apply(make_decoder(), first)
    with pytest.raises(InputError, match=named):
        apply(half, then)


@pytest.mark.parametrize("multiple", [0, -8, 2.0, True, "8"])
def test_bad_padding_is_refused(make_decoder, multiple):
    with pytest.raises(InputError, match="multiple"):
        pad(make_decoder(), multiple)


def test_a_decoder_that_disagrees_with_its_configuration_is_refused(make_decoder):
    decoder = make_decoder()
    decoder.config["intermediate_size"] = 14
    with pytest.raises(InputError, match=f"^{decoder.name}: 13 neurons in block 0; 14"):
        apply(decoder, Pruning(neurons={0: [1]}))
    del decoder.config["intermediate_size"]
    with pytest.raises(InputError, match="intermediate_size None"):
        apply(decoder, Pruning(neurons={0: [1]}))


def uneven(decoder):
    """The decoder with fewer heads in block 1 and fewer neurons in block 2, and no record of it."""
    return replace(apply(decoder, Pruning(kv_groups={1: [0]}, neurons={2: [3, 5]})), pruning=None)


def test_a_decoder_whose_blocks_differ_without_a_record_is_pruned_where_they_are_whole(make_decoder):
    decoder = uneven(make_decoder())
    pruned = apply(decoder, Pruning(blocks=[0], mha=[2], ffn=[1], kv_groups={3: [1]}, neurons={3: [0, 4]}))
    assert [block.index for block in pruned.blocks] == [1, 2, 3]
    assert pruned.blocks[0].mha is decoder.blocks[1].mha
    assert pruned.blocks[1].ffn is decoder.blocks[2].ffn
    assert (pruned.blocks[2].mha.kv_heads, pruned.blocks[2].ffn.width) == (2, 11)
    with pytest.raises(InputError, match=f"^{decoder.name}: 11 neurons in block 2; 13 are expected"):
        apply(decoder, Pruning(neurons={2: [0]}))
    with pytest.raises(InputError, match=f"^{decoder.name}: 2 KV heads in block 1; 3 are expected"):
        apply(decoder, Pruning(kv_groups={1: [0]}))


def test_a_decoder_whose_blocks_differ_without_a_record_is_padded(make_decoder):
    decoder = uneven(make_decoder())
    padded = pad(decoder, 4)
    assert [block.ffn.width for block in padded.blocks] == [16, 16, 12, 16]
    for block, original in zip(padded.blocks, decoder.blocks, strict=True):
        assert torch.equal(block.ffn.down.weight[:, : original.ffn.width], original.ffn.down.weight)
        assert not block.ffn.down.weight[:, original.ffn.width :].any()
    with pytest.raises(InputError, match=f"^{decoder.name}: 12 neurons in block 2; 13 or 16 are expected"):
        pad(padded, 1)  # which of them are padding is not known any more


def test_parameters_removed_are_counted_exactly(make_decoder):
    decoder = make_decoder()
    removed = decoder.parameters() - apply(decoder, Pruning(kv_groups={0: [1]}, neurons={1: [2, 3]})).parameters()
    # A group: 4 rows of k and of v, 8 rows of q, 8 columns of o, each of 16; a neuron: two rows and a column of 16.
    assert removed == (4 + 4 + 8 + 8) * 16 + 2 * 3 * 16
