"""Single query heads and additions to biases: as data, applied, composed, written and read, and mapped back."""

import json

import pytest
import torch

import pyprune
from pyprune.errors import InputError
from pyprune.models import load
from pyprune.models.compensation import FILE, Compensation
from pyprune.models.decoder import MHA
from pyprune.pruning import KeptBlock, Pruning, apply, index_map, pad
from tests import seeds


def values(seed, size=16):
    return torch.randn(size, generator=seeds.generator(seed))


def added(**biases):
    return Pruning(model="tiny", compensation={name.replace("_", "."): value for name, value in biases.items()})


def same_tensors(one, other):
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("biases", [False, True])
def test_removed_query_heads_equal_zeroed_channels(make_decoder, reference, biases):
    decoder = make_decoder(heads=9, kv_heads=3, biases=biases, qk_norm=biases, window=4 * biases)
    gone = [1, 5, 6]  # one of each group of three
    pruned = apply(decoder, Pruning(heads={2: gone}))
    x = torch.randn(2, 7, 16, dtype=torch.float64, generator=seeds.generator(1))
    whole, narrow = decoder.blocks[2].mha, pruned.blocks[2].mha
    context = reference.context(whole, x, decoder.rope)
    for head in gone:
        context[..., head * 4 : (head + 1) * 4] = 0
    expected = reference.project(whole.o, context)
    actual = reference.project(narrow.o, reference.context(narrow, x, decoder.rope))
    assert (narrow.heads, narrow.kv_heads, narrow.group) == (6, 3, 2)
    assert narrow.k.weight.data_ptr() == whole.k.weight.data_ptr()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("pruning", "named"),
    [
        (Pruning(heads={1: [0]}), r"heads of block 1 leave 1, 2, 2 query heads in its KV groups 0, 1, 2"),
        (Pruning(heads={1: [0, 1]}), r"leave 0, 2, 2 .*a whole group goes by kv_groups"),
        (Pruning(heads={1: [0, 1, 2, 3, 4, 5]}), "leave 0, 0, 0"),
        (Pruning(heads={1: [0, 2]}, kv_groups={1: [0]}), r"leave 1, 2 query heads in its KV groups 1, 2"),
        (Pruning(heads={1: [6]}), "heads of block 1 names 6; 0 to 5"),
        (Pruning(heads={4: [0]}), "heads names block 4"),
    ],
)
def test_groups_of_unequal_size_are_refused_with_the_reason(make_decoder, pruning, named):
    with pytest.raises(InputError, match=named):
        apply(make_decoder(), pruning)


def test_heads_compose_with_groups_in_any_order(make_decoder):
    decoder = make_decoder(heads=9, biases=True)
    heads, group = Pruning(heads={1: [0, 3, 7]}), Pruning(kv_groups={1: [1]}, neurons={1: [2]})
    together = apply(decoder, heads | group)
    assert (together.blocks[1].mha.heads, together.blocks[1].mha.kv_heads) == (4, 2)
    for one, other in ((heads, group), (group, heads)):
        twice = apply(apply(decoder, one), other)
        assert same_tensors(twice, together)
        assert twice.pruning == together.pruning
    # Heads of a group that goes are not named again, and what is gone may be named again.
    assert together.pruning.heads == {1: (0, 7)}
    assert apply(together, heads | group).blocks[1] is together.blocks[1]
    more = apply(together, Pruning(heads={1: [1, 8]}))
    assert more.blocks[1].mha.group == 1


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_models_without_some_query_heads_generate_like_the_masked_one(family, tmp_path):
    decoder = load(f"shape:hidden=32,blocks=3,heads=6,kv_heads=2,head_dim=10,ffn=37,vocab=61,family={family}")
    gone = {0: [1, 3], 2: [0, 1, 4, 5]}
    ids = torch.arange(14).view(2, 7)
    masked = list(decoder.blocks)
    for layer, heads in gone.items():
        mha: MHA = masked[layer].mha
        weight = mha.o.weight.clone()
        for head in heads:
            weight[:, head * 10 : head * 10 + 10] = 0
        masked[layer] = pyprune.models.decoder.replace(
            masked[layer], mha=pyprune.models.decoder.replace(mha, o=pyprune.models.Linear(weight, mha.o.bias))
        )
    masked = pyprune.models.decoder.replace(decoder, blocks=tuple(masked))
    runs = [
        pyprune.Engine(one, max_batch=2, max_len=16).generate(ids, max_new_tokens=6)
        for one in (masked, apply(decoder, Pruning(heads=gone)))
    ]
    assert torch.equal(*runs)


def test_a_record_of_heads_survives_json(tmp_path):
    pruning = Pruning(model="m", heads={3: [4, 0]})
    pruning.to_json(tmp_path / "pruning.json")
    assert json.loads((tmp_path / "pruning.json").read_text())["heads"] == {"3": [0, 4]}
    assert Pruning.from_json(tmp_path / "pruning.json") == pruning
    assert Pruning(mha=[3], heads={3: [4]}) == Pruning(mha=[3])
    assert Pruning(heads={3: [1]}) != Pruning(heads={3: [2]})
    with pytest.raises(InputError, match=r"heads of blocks \[3\] cannot be skipped"):
        pruning.skip_sets()


# Additions to biases.


def test_a_bias_is_added_where_there_is_none_and_to_the_one_there_is(make_decoder, reference):
    pruning = added(blocks_1_o_bias=values(1), blocks_2_down_bias=values(2))
    for biases in (False, True):
        decoder = make_decoder(biases=biases, dtype=torch.float32)
        changed = apply(decoder, pruning)
        for block, half, name in ((1, "mha", "o"), (2, "ffn", "down")):
            before = getattr(getattr(decoder.blocks[block], half), name)
            after = getattr(getattr(changed.blocks[block], half), name)
            base = torch.zeros(16) if before.bias is None else before.bias
            assert torch.equal(after.bias, base + values(block))
            assert after.weight is before.weight
        assert changed.blocks[0] is decoder.blocks[0]
        ids = torch.arange(12).view(2, 6)
        engine = pyprune.Engine(changed, max_batch=2, max_len=8)
        expected = reference.logits(changed, ids)[:, -1].argmax(-1)
        assert torch.equal(engine.generate(ids, max_new_tokens=1)[:, 0], expected)


def test_an_addition_is_made_once(make_decoder):
    decoder = make_decoder(dtype=torch.float32)
    pruning = added(blocks_1_o_bias=values(1)) | Pruning(neurons={1: [0]})
    once = apply(decoder, pruning)
    assert same_tensors(apply(once, pruning), once)
    assert same_tensors(apply(once, once.pruning), once)
    assert same_tensors(pad(pad(once, 8), 1), once)


def test_additions_compose_in_any_order_and_twice_is_once(make_decoder):
    decoder = make_decoder(dtype=torch.float32)
    one = added(blocks_1_o_bias=values(1), blocks_0_down_bias=values(2))
    other = added(blocks_1_o_bias=values(3)) | Pruning(neurons={0: [1]})
    both = one | other
    assert both == other | one == both | one == one | one | other
    assert both != one
    torch.testing.assert_close(both.compensation["blocks.1.o.bias"], values(1) + values(3))
    together = apply(decoder, both)
    assert same_tensors(apply(apply(decoder, one), other), together)
    assert same_tensors(apply(apply(decoder, other), both), together)
    assert apply(apply(decoder, one), both).pruning == together.pruning


def test_a_removed_half_takes_its_addition_with_it(make_decoder):
    pruning = added(blocks_1_o_bias=values(1), blocks_1_down_bias=values(2), blocks_2_o_bias=values(3))
    assert list((pruning | Pruning(mha=[1])).compensation) == ["blocks.1.down.bias", "blocks.2.o.bias"]
    assert list((pruning | Pruning(blocks=[1])).compensation) == ["blocks.2.o.bias"]
    assert apply(make_decoder(), pruning | Pruning(blocks=[1, 2])).pruning == Pruning("tiny", [1, 2])


def test_zeros_add_nothing():
    assert added(blocks_1_o_bias=torch.zeros(16)) == Pruning(model="tiny")
    assert not Pruning(compensation={"blocks.1.o.bias": torch.zeros(3)})
    assert added(blocks_1_o_bias=values(1))


def test_round_trip_with_the_file_beside(tmp_path, make_decoder):
    one = added(blocks_10_o_bias=values(1), blocks_2_down_bias=values(2))
    pruning = one | added(blocks_2_down_bias=values(4)) | Pruning(neurons={2: [1]})
    pruning.to_json(tmp_path / "pruning.json")
    data = json.loads((tmp_path / "pruning.json").read_text())
    assert list(data["compensation"]) == ["blocks.2.down.bias", "blocks.10.o.bias"]
    assert len(data["compensation"]["blocks.2.down.bias"]) == 2
    again = Pruning.from_json(tmp_path / "pruning.json")
    assert again == pruning
    for name in pruning.compensation:
        assert torch.equal(again.compensation[name], pruning.compensation[name])
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / FILE)) == {"blocks.10.o.bias", "blocks.2.down.bias", "blocks.2.down.bias.1"}
    pruning.to_json(tmp_path / "pruning.json")  # its own file may be replaced, by itself or by another version
    one.to_json(tmp_path / "pruning.json")
    assert Pruning.from_json(tmp_path / "pruning.json") == one


def test_another_prunings_file_is_not_overwritten(tmp_path):
    one, other = added(blocks_1_o_bias=values(1)), added(blocks_1_o_bias=values(2))
    one.to_json(tmp_path / "one.json")
    with pytest.raises(InputError, match=f"{FILE}: belongs to another pruning"):
        other.to_json(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
    assert Pruning.from_json(tmp_path / "one.json") == one
    Pruning(blocks=[1]).to_json(tmp_path / "plain.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "one.json", "plain.json"]


def test_neither_file_is_written_when_the_other_cannot_be(tmp_path, monkeypatch):
    pruning = added(blocks_1_o_bias=values(1))

    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyprune.models.pruning.json_text", full)
    with pytest.raises(OSError, match="No space"):
        pruning.to_json(tmp_path / "pruning.json")
    assert list(tmp_path.iterdir()) == []


def test_a_record_without_the_values_is_no_recipe(tmp_path, make_decoder):
    pruning = added(blocks_1_o_bias=values(1))
    pruning.to_json(tmp_path / "pruning.json")
    (tmp_path / FILE).unlink()
    record = Pruning.from_json(tmp_path / "pruning.json")
    assert record == pruning
    with pytest.raises(InputError, match=f"values added to blocks.1.o.bias .* are not known.*{FILE}"):
        apply(make_decoder(), record)
    with pytest.raises(InputError, match="are not known"):
        record.to_json(tmp_path / "again.json")
    assert not (tmp_path / "again.json").exists()
    assert (record | pruning).compensation.complete()


def test_a_foreign_or_broken_file_beside_is_refused(tmp_path):
    added(blocks_1_o_bias=values(1)).to_json(tmp_path / "pruning.json")
    added(blocks_1_o_bias=values(2)).to_json(tmp_path / "other" / "pruning.json")
    (tmp_path / FILE).write_bytes((tmp_path / "other" / FILE).read_bytes())
    with pytest.raises(InputError, match=f"{FILE}: belongs to another pruning"):
        Pruning.from_json(tmp_path / "pruning.json")
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(InputError, match=f"{FILE}: .*a safetensors file is expected"):
        Pruning.from_json(tmp_path / "pruning.json")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"blocks.1.q.bias": values(1)}, r"blocks\.1\.q\.bias"),
        ({"blocks.01.o.bias": values(1)}, r"blocks\.01\.o\.bias"),
        ({3: values(1)}, "compensation of 3"),
        ({"blocks.1.o.bias": [1.0]}, "list given"),
        ({"blocks.1.o.bias": torch.ones(2, 2)}, r"\[2, 2\] given"),
        ({"blocks.1.o.bias": torch.ones(2, dtype=torch.int64)}, "int64"),
        ({"blocks.1.o.bias": torch.tensor([1.0, float("nan")])}, "infinite or NaN"),
        ([1], "compensation list"),
    ],
)
def test_bad_additions_are_refused_by_their_value(bad, named):
    with pytest.raises(InputError, match=named):
        Pruning(compensation=bad)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"compensation": {"blocks.1.o.bias": "x"}}, "compensation of blocks.1.o.bias 'x'"),
        ({"compensation": {"blocks.1.o.bias": ["x"]}}, "SHA-256"),
        ({"compensation": [1]}, r"compensation \[1\]"),
        ({"compensation": {"o": []}}, "compensation of 'o'"),
    ],
)
def test_bad_records_of_additions_are_refused(bad, named):
    with pytest.raises(InputError, match=named):
        Pruning.from_dict(bad)


def test_additions_that_do_not_fit_the_model_are_refused(make_decoder):
    with pytest.raises(InputError, match=r"5 values are added to blocks\.1\.o\.bias; 16 of tiny"):
        apply(make_decoder(), added(blocks_1_o_bias=values(1, size=5)))
    with pytest.raises(InputError, match="compensation names block 9; 0 to 3"):
        apply(make_decoder(), added(blocks_9_o_bias=values(1)))
    with pytest.raises(InputError, match=r"compensation of blocks \[1\] cannot be skipped"):
        added(blocks_1_o_bias=values(1)).skip_sets()


def test_equal_additions_are_equal_objects():
    one, other = (Compensation.of({"blocks.1.o.bias": values(1)}) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Compensation.of({"blocks.1.o.bias": values(2)})
    assert hash(added(blocks_1_o_bias=values(1))) == hash(added(blocks_1_o_bias=values(1)))


# The way back to the original.

MAPPED = Pruning(blocks=[1], mha=[3], kv_groups={0: [1]}, heads={2: [0, 3, 5]}, neurons={0: [2, 5], 3: [0]})


def test_the_map_names_what_stays_of_each_block(make_decoder):
    decoder = make_decoder()
    every = tuple(range(13))
    assert index_map(decoder, MAPPED) == (
        KeptBlock(0, (0, 2), (0, 1, 4, 5), (0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12)),
        KeptBlock(2, (0, 1, 2), (1, 2, 4), every),
        KeptBlock(3, None, None, every[1:]),
    )
    assert index_map(apply(decoder, MAPPED)) == index_map(decoder, MAPPED)
    assert index_map(apply(decoder, Pruning(blocks=[1])), MAPPED) == index_map(decoder, MAPPED)
    assert index_map(pad(apply(decoder, MAPPED), 8)) == index_map(decoder, MAPPED)


@pytest.mark.parametrize("order", [0, 1])
def test_what_stays_goes_back_to_its_place(make_decoder, order):
    # Depth then width, or the reverse; each kept row and column, put where the map says, is the original's.
    decoder = make_decoder(biases=True)
    depth, narrow = Pruning(blocks=[1]), Pruning(kv_groups={0: [1]}, heads={2: [0, 3, 5]}, neurons={0: [2, 5], 2: [0]})
    pruned = decoder
    for one in ((depth, narrow), (narrow, depth))[order]:
        pruned = apply(pruned, one)
    for block, place in zip(pruned.blocks, index_map(pruned), strict=True):
        original = decoder.blocks[place.index]
        rows = [head * 4 + i for head in place.heads for i in range(4)]
        kv_rows = [group * 4 + i for group in place.kv_groups for i in range(4)]
        assert torch.equal(block.mha.q.weight, original.mha.q.weight[rows])
        assert torch.equal(block.mha.o.weight, original.mha.o.weight[:, rows])
        assert torch.equal(block.mha.k.bias, original.mha.k.bias[kv_rows])
        assert torch.equal(block.ffn.up.weight, original.ffn.up.weight[list(place.neurons)])
        assert torch.equal(block.ffn.down.weight, original.ffn.down.weight[:, list(place.neurons)])


def test_the_map_refuses_what_does_not_fit(make_decoder):
    with pytest.raises(InputError, match="names block 7"):
        index_map(make_decoder(), Pruning(blocks=[7]))
