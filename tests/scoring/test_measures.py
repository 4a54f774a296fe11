"""Every measure against its definition: whole logits of transformers' model in float64, of every candidate."""

from __future__ import annotations

import math
import re

import pytest
import torch
from naive import edited, measures, outputs

from pyprune import InputError, Pruning, apply, load, score
from pyprune.scoring import heads
from pyprune.scoring.measures import MEASURES
from pyprune.scoring.measures.cosine import Cosine
from pyprune.scoring.measures.interface import Samples
from pyprune.scoring.measures.kl import KLDivergence
from tests import seeds

S, T = 3, 11
FAMILIES = {
    "llama": "shape:hidden=24,blocks=3,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=1187",
    "tied": "shape:hidden=24,blocks=3,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97,tied=1",
    "qwen2": "shape:hidden=24,blocks=3,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97,family=qwen2",
}
CANDIDATES = [
    Pruning(blocks=[1]),
    Pruning(neurons={0: [3, 4, 5]}),
    Pruning(mha=[2], kv_groups={1: [0]}),
    {(2, "ffn"): lambda x: 0.2 * x.flip(-1)},
]


@pytest.fixture(params=[None, "padded"], ids=["whole", "padded"])
def mask(request):
    if request.param is None:
        return None
    mask = torch.ones(S, T, dtype=torch.long)
    mask[0, :3] = 0
    mask[2, 7:] = 0
    return mask


def sharpened(spec):
    """A random model whose logits are spread as a trained model's, so that its predictions differ clearly."""
    decoder = load(spec)
    return decoder.map(lambda tensor: tensor * 8 if tensor.dim() == 2 and tensor is decoder.head.weight else tensor)


def labelled(ids):
    labels = torch.full_like(ids, -100)
    labels[0, 5:9] = ids[0, 5:9]
    labels[1, -1] = 7
    labels[2, 2] = 0
    return labels


def rounding_of_kl(divergence: float, logits: torch.Tensor) -> float:
    """What float32's rounding of logits can change in a divergence, which shows where that is close to zero.

    A change of each logit by at most d changes it by at most d times the distance of the two distributions, which is no
    more than sqrt(2 KL) (Pinsker's inequality). d: four roundings of the largest logit.
    """
    return math.sqrt(2 * divergence) * 4 * torch.finfo(torch.float32).eps * float(logits.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_measures_of_one_pass_are_their_definitions(family: str, mask):
    decoder = sharpened(FAMILIES[family])
    ids = torch.randint(0, decoder.vocab_size, (S, T), generator=seeds.generator(21))
    labels = labelled(ids)
    names = ["kl", "ppl", "top1", "task-loss", "cosine", "finercut"]
    assert set(names) == set(MEASURES)
    result = score(decoder, ids, attention_mask=mask, candidates=CANDIDATES, measure=names, labels=labels)
    original = outputs(edited(decoder, {}, torch.float64), ids, mask)
    for place, candidate in enumerate(CANDIDATES):
        run = outputs(edited(decoder, candidate, torch.float64), ids, mask)
        expected = measures(run, original, ids, mask, labels)
        for name in names:
            allowed = rounding_of_kl(expected[name], original[0]) if name == "kl" else 0.0
            assert result.measures[name].values[place] == pytest.approx(expected[name], rel=1e-4, abs=allowed), name
    assert result.values == result.measures["kl"].values
    assert result.criterion == "kl"
    own = measures(original, original, ids, mask, labels)
    for name in names:
        assert result.measures[name].baseline == pytest.approx(own[name], rel=1e-4, abs=1e-12), name


@pytest.mark.parametrize("tile", [1, 7, 64])
def test_the_size_of_a_tile_does_not_change_a_measure(tile: int, monkeypatch):
    decoder = sharpened(FAMILIES["tied"])
    ids = torch.randint(0, 97, (S, T), generator=seeds.generator(22))
    names = ["kl", "top1", "finercut"]
    whole = score(decoder, ids, candidates=CANDIDATES, measure=names)
    monkeypatch.setattr(heads, "VOCABULARY_TILE", tile)
    tiled = score(decoder, ids, candidates=CANDIDATES, measure=names)
    logits, _ = outputs(edited(decoder, {}, torch.float64), ids)
    for name in names:
        for value, expected in zip(tiled.measures[name].values, whole.measures[name].values, strict=True):
            allowed = rounding_of_kl(expected, logits) if name == "kl" else 0.0
            assert value == pytest.approx(expected, rel=1e-4, abs=allowed)


def test_units_are_measured_as_candidates_are():
    decoder = load(FAMILIES["qwen2"])
    ids = torch.randint(0, 97, (S, T), generator=seeds.generator(23))
    units = score(decoder, ids, unit="mha+ffn", measure=["cosine", "kl"], protect=[1])
    places = [Pruning(**{kind: [index]}) for kind, index in units.units]
    assert units.values == pytest.approx(score(decoder, ids, candidates=places, measure="cosine").values, rel=1e-6)
    assert units.criterion == "cosine"
    assert {index for _, index in units.order()[-2:]} == {1}
    assert score(decoder, ids, measure="ppl").values == score(decoder, ids).values


def test_measures_come_in_parts_as_they_come_together():
    decoder = sharpened(FAMILIES["llama"])
    ids = torch.randint(0, 1187, (S, T), generator=seeds.generator(24))
    names = ["finercut", "kl", "cosine", "top1", "ppl"]
    whole = score(decoder, ids, candidates=CANDIDATES, measure=names)
    with pytest.raises(InputError, match=r"needs [0-9.]+ MB") as refused:
        score(decoder, ids, candidates=CANDIDATES, measure=names, memory=1)
    least = float(re.search(r"needs ([0-9.]+) MB", str(refused.value))[1])
    tight = score(decoder, ids, candidates=CANDIDATES, measure=names, memory=int(least * 1e6))
    for name in names:
        assert tight.measures[name].values == pytest.approx(whole.measures[name].values, rel=1e-5)


def test_small_divergences_stay_exact():
    """A small change of one bias, whose divergence logarithms of probabilities in float32 would not show."""
    decoder = load(FAMILIES["llama"])
    ids = torch.randint(0, 1187, (S, T), generator=seeds.generator(25))
    nudge = 1e-3 * torch.randn(24, generator=seeds.generator(26))
    candidate = Pruning(compensation={"blocks.2.down.bias": nudge})
    result = score(decoder, ids, candidates=[candidate], measure=["cosine", "finercut", "kl"])
    wide = decoder.to(torch.float64)
    expected = measures(
        outputs(edited(wide, candidate, torch.float64), ids), outputs(edited(wide, {}, torch.float64), ids), ids
    )
    assert expected["kl"] < 1e-6
    for name in ("cosine", "finercut", "kl"):
        assert result.measures[name].values[0] == pytest.approx(expected[name], rel=1e-3), name


def test_the_divergence_of_far_logits_neither_overflows_nor_vanishes():
    p = torch.tensor([[[300.0, -300.0, 0.0, 299.0]]])
    q = torch.tensor([[[-200.0, 250.0, 249.0, -900.0]]])
    comparison = KLDivergence(Samples(torch.zeros(1, 1, dtype=torch.long))).comparison(torch.Size((1, 1)), p.device)
    for start in range(0, 4, 2):
        comparison.add(q[..., start : start + 2], p[..., start : start + 2], start)
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    assert float(comparison.result()) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-6)


def test_equal_states_are_at_no_distance():
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=seeds.generator(27))
    cosine = Cosine(Samples(torch.zeros(2, 3, dtype=torch.long)))
    assert cosine.distances(x, 3 * x).abs().max() < 1e-15
    assert (cosine.distances(x, -x) - 2).abs().max() < 1e-14
    assert torch.isfinite(cosine.distances(torch.zeros_like(x), x)).all()


def test_the_weights_may_be_of_half_precision():
    decoder = sharpened(FAMILIES["tied"]).to(torch.bfloat16)
    ids = torch.randint(0, 97, (S, T), generator=seeds.generator(28))
    names = ["kl", "finercut", "cosine"]
    half = score(decoder, ids, candidates=CANDIDATES[:3], measure=names)
    exact = score(decoder.to(torch.float32), ids, candidates=CANDIDATES[:3], measure=names)
    for name in names:
        assert half.measures[name].values == pytest.approx(exact.measures[name].values, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(measure="task-loss"), "labels: None given"),
        (dict(labels=torch.zeros(S, T, dtype=torch.long)), "labels: given, but measure ppl reads none"),
        (dict(measure="task-loss", labels=torch.zeros(S, T - 1, dtype=torch.long)), r"labels: torch.int64 \[3, 10\]"),
        (dict(measure="task-loss", labels=torch.zeros(S, T)), r"labels: torch.float32"),
        (dict(measure="task-loss", labels=[[1]]), "labels: list given"),
        (dict(measure="task-loss", labels=torch.full((S, T), 97)), "labels: token id 97 given; 0 to 96"),
        (dict(measure="task-loss", labels=torch.full((S, T), -100)), "labels: none is set"),
        (dict(measure="kl", criterion="magnitude"), "criterion: 'magnitude' given, but measure goes with 'ppl'"),
        (dict(measure="kl", input_ids=None), "input_ids: None given"),
        (dict(measure=("ppl", "bits")), "measure: 'bits' given; ppl, kl, cosine, top1, task-loss, finercut"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict, message: str):
    ids = torch.randint(0, 97, (S, T), generator=seeds.generator(29))
    with pytest.raises(InputError, match=message):
        score(**{"model": load(FAMILIES["tied"]), "input_ids": ids, **change})


def test_an_overflow_is_reported_not_ranked():
    decoder = apply(load(FAMILIES["tied"]), Pruning(blocks=[2]))
    ids = torch.randint(0, 97, (S, T), generator=seeds.generator(30))
    with pytest.raises(ArithmeticError, match="kl is not a number"):
        score(decoder, ids, measure="kl", candidates=[{(0, "ffn"): lambda x: x * float("nan")}])


def test_float64_logits_stay_as_they_are_for_whoever_is_next():
    logits, original = (torch.randn(2, 5, 7, dtype=torch.float64, generator=seeds.generator(n)) for n in (1, 2))
    kept = logits.clone(), original.clone()
    measure = KLDivergence(Samples(torch.zeros(2, 5, dtype=torch.long)))
    measure.comparison(torch.Size((2, 5)), torch.device("cpu")).add(logits, original, 0)
    assert torch.equal(logits, kept[0])
    assert torch.equal(original, kept[1])
