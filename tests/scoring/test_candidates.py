"""Candidates against their definition: transformers' model with each of them in place, run alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from naive import edited, outputs, perplexity

from pyprune import InputError, Pruning, Scores, apply, depth, load, score
from pyprune.models.blocks import Linear
from pyprune.pruning.apply import narrow_ffn, narrow_mha
from pyprune.scoring import WithResidual
from pyprune.scoring import candidates as candidate_module
from pyprune.scoring.candidates import candidate_set, read_prunings
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.schedule import make_schedule
from tests import seeds

SHAPE = "shape:hidden=24,blocks=4,heads=6,kv_heads=3,head_dim=4,ffn=37,vocab=101"
S, T = 3, 13


@pytest.fixture(scope="module")
def decoder():
    return load(SHAPE)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 101, (S, T), generator=seeds.generator(11))


@pytest.fixture(scope="module")
def mask():
    mask = torch.ones(S, T, dtype=torch.long)
    mask[1, :4] = 0
    mask[2, 9:] = 0
    return mask


def small(module):
    """A module with weights of the size of the model's own, from a seed of its own."""
    for number, parameter in enumerate(module.parameters()):
        torch.nn.init.normal_(parameter, std=0.05, generator=seeds.generator(40 + number))
    return module.requires_grad_(False)


LINEAR = small(torch.nn.Linear(24, 24))
MLP = small(
    torch.nn.Sequential(torch.nn.LayerNorm(24), torch.nn.Linear(24, 7), torch.nn.GELU(), torch.nn.Linear(7, 24))
)
MEAN = 0.3 * torch.randn(24, generator=seeds.generator(50))
MATRIX = 0.05 * torch.randn(24, 24, generator=seeds.generator(51))
BIAS = 0.2 * torch.randn(24, generator=seeds.generator(52))

PRUNINGS = {
    "block": Pruning(blocks=[1]),
    "both kinds": Pruning(mha=[0], ffn=[3]),
    "FFN width": Pruning(neurons={2: list(range(3, 20))}),
    "KV groups": Pruning(kv_groups={1: [0]}),
    "query heads": Pruning(heads={1: [0, 2, 5]}),
    "FLAP": Pruning(neurons={3: [5, 36]}, kv_groups={0: [2]}, compensation={"blocks.3.down.bias": BIAS}),
    "only a bias": Pruning(compensation={"blocks.0.o.bias": BIAS}),
    "padded": Pruning(neurons={2: [0]}, pad_to=8),
    "a mixture": Pruning(blocks=[0], ffn=[1], neurons={2: [7]}, kv_groups={3: [0, 1]}),
}
MODULES = {
    "left out": {(2, "mha"): None},
    "linear map": {(1, "ffn"): LINEAR},
    "module": {(0, "mha"): MLP},
    "function": {(3, "ffn"): lambda x: 0.1 * x.roll(1, -1)},
    "block by a module": {(1, "block"): MLP},
    "last block by a linear map": {(3, "block"): LINEAR},
    "block left out and another changed": {(0, "block"): None, (2, "ffn"): MLP},
    "several": {(1, "mha"): LINEAR, (1, "ffn"): None, (3, "mha"): MLP},
}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_every_kind_of_edit_equals_its_own_forward(decoder, ids, mask, padded: bool):
    mask = mask if padded else None
    candidates = PRUNINGS | MODULES
    result = score(decoder, ids, attention_mask=mask, candidates=candidates)
    expected = [perplexity(outputs(edited(decoder, c), ids, mask)[0], ids, mask) for c in candidates.values()]
    assert result.values == pytest.approx(expected, rel=1e-4)
    assert result.baseline == pytest.approx(perplexity(outputs(edited(decoder, {}), ids, mask)[0], ids, mask), rel=1e-4)
    assert len({round(value, 6) for value in (*result.values, result.baseline)}) == len(candidates) + 1  # all differ
    assert result.names() == list(candidates)
    assert result.units == [("candidate", n) for n in range(len(candidates))]


def test_tensors_and_sublayers_of_ours_stand_in_any_place(decoder, ids):
    ffn, mha = decoder.blocks[2].ffn, decoder.blocks[2].mha
    functions = {
        (1, "mha"): lambda x: MEAN.expand_as(x),
        (2, "ffn"): lambda x: x @ MATRIX.T + BIAS,
    }
    result = score(
        decoder,
        ids,
        candidates=[
            {(1, "mha"): MEAN, (2, "ffn"): Linear(MATRIX, BIAS)},
            {(2, "ffn"): narrow_ffn(ffn, range(5, 30)), (2, "mha"): narrow_mha(mha, [0, 2])},
            {(2, "block"): apply(decoder, Pruning(kv_groups={2: [1]})).blocks[2]},
            {(0, "mha"): WithResidual(torch.nn.Sequential(torch.nn.Identity(), LINEAR))},
        ],
    )
    pruning = Pruning(neurons={2: [n for n in range(37) if not 5 <= n < 30]}, kv_groups={2: [1]})
    naive = [functions, pruning, Pruning(kv_groups={2: [1]}), {(0, "mha"): lambda x: LINEAR(x) - x}]
    expected = [perplexity(outputs(edited(decoder, candidate), ids)[0], ids) for candidate in naive]
    assert result.values == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families_and_windows(family: str, ids):
    window = "" if family == "qwen3" else ",window=5"
    decoder = load(f"{SHAPE},family={family}{window}")
    candidates = [PRUNINGS["a mixture"], MODULES["several"], PRUNINGS["KV groups"]]
    expected = [perplexity(outputs(edited(decoder, candidate), ids)[0], ids) for candidate in candidates]
    assert score(decoder, ids, candidates=candidates).values == pytest.approx(expected, rel=1e-4)


def test_a_pruned_model_is_changed_in_original_indices(decoder, ids):
    pruned = apply(decoder, Pruning(blocks=[1], ffn=[2], neurons={3: [0, 1]}, pad_to=16))
    candidates = {
        "more": Pruning(neurons={3: [1, 4]}, blocks=[0]),
        "what is gone": Pruning(ffn=[2], blocks=[1]),
        "put back": {(2, "ffn"): LINEAR},
    }
    result = score(pruned, ids, candidates=candidates)
    put_back = edited(pruned, {})
    put_back.model.layers[1].forward = lambda x, *_, **settings: _behind(put_back.model.layers[1], x, settings)
    expected = [
        perplexity(outputs(edited(pruned, Pruning(neurons={3: [1, 4]}, blocks=[0])), ids)[0], ids),
        result.baseline,
        perplexity(outputs(put_back, ids)[0], ids),
    ]
    assert result.values == pytest.approx(expected, rel=1e-4)


def _behind(layer, x, settings):
    """A layer without an FFN, then what is added in its place."""
    x = type(layer).forward(layer, x, **settings)
    return x + LINEAR(x)


def test_a_module_that_asks_for_the_mask_gets_it(decoder, ids, mask):
    seen = []

    def last_unmasked(x, attention_mask=None):
        if attention_mask is None:
            return x
        seen.append(attention_mask)
        assert attention_mask.shape == x.shape[:2]
        return x * attention_mask[..., None]

    score(decoder, ids, attention_mask=mask, candidates=[{(2, "ffn"): last_unmasked}])
    assert torch.equal(seen[0][:S], mask.bool())


def test_equal_edits_share_what_they_give_and_split_behind(decoder, ids):
    narrowed, calls = Pruning(neurons={1: [0, 5]}), []

    def counted(x):
        calls.append(len(x))
        return LINEAR(x)

    candidates = [
        {(0, "mha"): counted},
        {(0, "mha"): counted, (2, "ffn"): None},
        {(0, "mha"): counted, (2, "ffn"): MLP},
        narrowed,
        Pruning(neurons={1: [0, 5]}, ffn=[3], made_by="another"),
        narrowed,
    ]
    result = score(decoder, ids, candidates=candidates)
    copies = 64 // (S * T) + 1  # skinny chunks are repeated
    assert calls == [1, copies * S]  # tried out once, then run once
    assert result.values[3] == result.values[5]
    read = candidate_set(LayeredDecoder(decoder), candidates)
    assert len(read.replacements) == 3
    schedule = make_schedule(4, LayeredDecoder(decoder).present, [frozenset(), *read.edits])
    assert schedule.slots == 6
    # 8 of the original; 7 behind MHA 0, where the edit itself is one, then 3 each that leave at FFN 2: 1 of MLP alone;
    # the narrowed FFN 1 once, 4 behind it, and one that has no FFN 3.
    assert schedule.sublayer_passes == 8 + 1 + 7 + 2 + 3 + 1 + 4 + 0


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_any_split_of_samples_and_candidates_gives_the_same(decoder, ids, limit: int, monkeypatch):
    candidates = list((PRUNINGS | MODULES).values())
    whole = score(decoder, ids, candidates=candidates)
    from pyprune.scoring import memory_budget

    fit = memory_budget.fit_pass

    def smaller(*inputs):
        size = fit(*inputs)
        return dataclasses.replace(size, samples=1 if limit < 7 else S, candidates=min(limit, size.candidates), rows=T)

    monkeypatch.setattr(memory_budget, "fit_pass", smaller)
    assert score(decoder, ids, candidates=candidates).values == pytest.approx(whole.values, rel=1e-6)


def test_a_streamed_checkpoint_is_narrowed_as_it_is_read(decoder, ids, tmp_path):
    decoder.save(tmp_path / "model")
    streamed = load(str(tmp_path / "model"), stream=True)
    candidates = list((PRUNINGS | MODULES).values())
    assert score(streamed, ids, candidates=candidates).values == pytest.approx(
        score(decoder, ids, candidates=candidates).values, rel=1e-6
    )


def test_the_model_and_the_modules_are_left_as_they_are(decoder, ids):
    before = [tensor.clone() for _, tensor in decoder.tensors()]
    weight = LINEAR.weight.clone()
    score(decoder, ids, candidates=[*PRUNINGS.values(), {(0, "ffn"): lambda x: x.mul_(0.5)}])
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, decoder.tensors(), strict=True))
    assert torch.equal(weight, LINEAR.weight)


def test_scores_of_candidates_come_back_from_their_file(decoder, ids, tmp_path):
    result = score(decoder, ids, candidates=PRUNINGS | MODULES, measure=["kl", "ppl"])
    result.to_json(tmp_path / "scores.json")
    assert Scores.from_json(tmp_path / "scores.json") == result
    data = json.loads((tmp_path / "scores.json").read_text())
    assert data["candidates"][0] == {"name": "block", "pruning": PRUNINGS["block"].to_dict()}
    assert data["candidates"][len(PRUNINGS) + 1]["changes"] == [{"block": 1, "place": "ffn", "by": "Linear"}]
    with pytest.raises(InputError, match="scores of candidates"):
        depth(result, count=1)


def test_an_interrupted_run_goes_on_and_another_candidate_is_another_work(decoder, ids, tmp_path):
    journal = tmp_path / "journal"
    candidates = [PRUNINGS["FLAP"], MODULES["several"]]
    first = score(decoder, ids, candidates=candidates, measure=["ppl", "kl"], resume=journal)
    assert score(decoder, ids, candidates=candidates, measure=["ppl", "kl"], resume=journal) == first
    with pytest.raises(InputError, match="replacements"):
        score(decoder, ids, candidates=[PRUNINGS["FLAP"], MODULES["module"]], measure=["ppl", "kl"], resume=journal)
    with pytest.raises(InputError, match=r"work score ppl\+kl candidate, but work is score ppl candidate"):
        score(decoder, ids, candidates=candidates, resume=journal)
    with pytest.raises(InputError, match="a candidate holds a function"):
        score(decoder, ids, candidates=[MODULES["function"]], resume=tmp_path / "other")


def test_a_directory_of_prunings_is_read_by_name(decoder, ids, tmp_path):
    for name in ("FLAP", "block", "KV groups"):
        (tmp_path / name).mkdir()
        PRUNINGS[name].to_json(tmp_path / name / "pruning.json")
    PRUNINGS["FFN width"].to_json(tmp_path / "widths.json")
    prunings = read_prunings(tmp_path)
    assert list(prunings) == ["FLAP", "KV groups", "block", "widths"]
    values = score(decoder, ids, candidates=prunings).values
    assert (
        values
        == score(decoder, ids, candidates=[PRUNINGS[n] for n in ("FLAP", "KV groups", "block", "FFN width")]).values
    )
    PRUNINGS["block"].to_json(tmp_path / "block.json")
    with pytest.raises(InputError, match="one of a name"):
        read_prunings(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no prunings"):
        read_prunings(tmp_path / "empty")


WRONG = [
    ([], "candidates: none given"),
    (Pruning(blocks=[1]), "candidates: Pruning given"),
    ("blocks", "candidates: str given"),
    ([[1]], "candidate 0: list given"),
    ([Pruning()], "candidate 0: an empty pruning"),
    ({"a": Pruning(blocks=[0]), "b": {}}, "candidate b: an empty mapping"),
    ([Pruning(blocks=[4])], "candidate 0: pruning: blocks names block 4"),
    ([Pruning(neurons={0: [37]})], "candidate 0: pruning: neurons of block 0 names 37"),
    ([{(4, "ffn"): None}], r"candidate 0: block 4, which .* has not"),
    ([{(0, "head"): None}], "candidate 0: place"),
    ([{0: None}], "candidate 0: place 0"),
    ([{(True, "ffn"): None}], "candidate 0: place"),
    ([{(0, "block"): MLP, (0, "ffn"): LINEAR}], "candidate 0: ffn 0 is changed twice"),
    ([{(0, "ffn"): torch.zeros(23)}], r"candidate 0: ffn 0: a tensor of torch.float32 \[23\] given"),
    ([{(0, "ffn"): torch.zeros(24, dtype=torch.int64)}], "candidate 0: ffn 0: a tensor of torch.int64"),
    ([{(0, "ffn"): Linear(torch.zeros(24, 7))}], r"a linear map \[24, 7\] given"),
    ([{(0, "ffn"): torch.nn.Linear(24, 7)}], r"candidate 0: ffn 0: gives torch.float32 \[1, 2, 7\]"),
    ([{(0, "ffn"): torch.nn.Linear(7, 24)}], r"ffn 0: fails on states \[1, 2, 24\] of torch.float32: mat1 and mat2"),
    ([{(0, "mha"): lambda x: (x, None)}], "candidate 0: mha 0: gives tuple"),
    ([{(0, "mha"): 3}], "candidate 0: mha 0: int given"),
    ([{(0, "mha"): torch.nn.Linear}], "candidate 0: mha 0: type given"),
    ([{(n, "block"): None for n in range(4)}], "leaves nothing of"),
]


@pytest.mark.parametrize(("candidates", "message"), WRONG)
def test_a_candidate_that_does_not_fit_is_refused(decoder, ids, candidates, message: str):
    with pytest.raises(InputError, match=message):
        score(decoder, ids, candidates=candidates)


def test_sublayers_of_other_sizes_are_refused_before_any_work(decoder, ids, monkeypatch):
    other = load("shape:hidden=24,blocks=1,heads=3,kv_heads=3,head_dim=8,ffn=11,vocab=101").blocks[0]
    wider = load("shape:hidden=32,blocks=1,heads=4,kv_heads=2,head_dim=4,ffn=11,vocab=101").blocks[0]
    monkeypatch.setattr(candidate_module.LayeredDecoder, "on", None)  # nothing runs
    with pytest.raises(InputError, match="mha 1: heads of 8 given; 4"):
        score(decoder, ids, candidates=[{(1, "mha"): other.mha}])
    with pytest.raises(InputError, match=r"ffn 1: norm \[32\] given"):
        score(decoder, ids, candidates=[{(1, "ffn"): wider.ffn}])
    for change, message in (
        (dict(criterion="taylor"), "criterion: 'taylor' given, but candidates goes with 'ppl'"),
        (dict(unit="ffn"), "unit: 'ffn' given, but candidates say themselves"),
        (dict(protect=[0]), "protect"),
        (dict(measure="best"), "measure: 'best' given; ppl, kl"),
        (dict(measure=[]), "measure"),
        (dict(measure=["kl", "kl"]), "measure"),
    ):
        with pytest.raises(InputError, match=message):
            score(decoder, ids, **{"candidates": [Pruning(blocks=[0])], **change})
