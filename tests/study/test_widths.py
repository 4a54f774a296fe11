"""The width study and its advice: what is timed, derived and kept. Times are made up unless one is needed."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import torch

from pyprune import InputError
from pyprune.study import linears, sweep, width_advice
from pyprune.study.linears import DTYPES, OURS, PADDED, SIDES, TABLE_1, TORCH, Pool
from pyprune.study.sweep import Settings
from pyprune.study.width_advice import Advice, Question, advise, candidates

SMALL = dict(start=30, stop=34, step=2, hidden=16, rows=(1, 3), dtype="float32", multiple=8, rounds=2)


@pytest.fixture(autouse=True)
def small_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linears, "POOL_BYTES", 1 << 16)
    monkeypatch.setenv("PYPRUNE_WIDTHS", str(tmp_path / "widths.json"))


# --- what is timed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("role", linears.ROLES)
def test_every_side_computes_a_linear_of_the_width(role: str, rows: int, dtype: torch.dtype):
    pool = Pool(19, 45, dtype, torch.device("cpu"))
    for maker in (linears.torch_linear, linears.our_linear):
        result = maker(pool, role, 45, 19, rows)()
        assert result.shape == (rows, 45 if role == "gate/up" else 19)
        assert result.dtype == dtype
        assert torch.isfinite(result).all()
        assert result.any()


def test_weights_of_a_pool_lie_one_after_the_other_on_cache_lines_and_never_leave_it():
    pool = Pool(19, 45, torch.bfloat16, torch.device("cpu"))
    weights = pool.weights(45, 19, 32)
    first, second = next(weights), next(weights)
    assert second.storage_offset() - first.storage_offset() == 45 * 32
    for _ in range(40):
        weight = next(pool.weights(19, 45, 45))
        assert weight.data_ptr() % 64 == 0
        assert weight.storage_offset() + 19 * 45 <= len(pool.values)


def test_what_a_linear_must_move_and_compute_is_counted_without_padding():
    assert linears.weight_bytes(7155, 4096, 16, torch.bfloat16) == 2 * (7155 * 4096 + 16 * (7155 + 4096))
    assert linears.flops(7155, 4096, 16) == 2 * 16 * 7155 * 4096


def test_the_widths_of_table_1_are_the_paper_s():
    assert sorted(TABLE_1[4096]) == [6054, 6781, 7155, 7156, 7497, 7816, 8256, 8577, 8807]
    assert sorted(TABLE_1[5120]) == [7603, 8710, 8985, 9954, 10368, 11060]


# --- the sweep ---------------------------------------------------------------------------------------------------


def test_a_sweep_times_every_width_role_and_number_of_rows_on_three_sides(tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    found = sweep.sweep(Settings(**SMALL), tmp_path / "out", lambda *step: told.append(step))
    assert told[-1] == ("timing", 12, 12)
    points = {(p["width"], p["role"], p["rows"]) for p in found.results["points"]}
    assert points == {(w, role, m) for w in (30, 32, 34) for role in linears.ROLES for m in (1, 3)}
    assert all(set(p["seconds"]) == set(SIDES) and len(p["seconds"][TORCH]) == 2 for p in found.results["points"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sweep.csv", "sweep.json", "sweep.png"]
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    read = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert read == json.loads(json.dumps(found.results))
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36
    assert list(lines[0]) == list(sweep.COLUMNS)


def made_up(settings: Settings) -> dict:
    seconds = {TORCH: [4.0, 2.0, 4.0], PADDED: [1.0, 1.0, 2.0], OURS: [1.0, 2.0, 4.0]}
    points = [{"width": 33, "role": "down", "rows": 3, "seconds": seconds}]
    machine = {"cpu": "Test", "threads": 2, "gpus": [], "versions": {"torch": "2"}}
    return {"format": sweep.FORMAT, "settings": settings.to_json(), "points": points, "machine": machine}


def test_the_table_is_derived_from_the_samples_and_rates_ignore_padding():
    settings = Settings(33, 33, hidden=16, rows=(3,), multiple=8, rounds=3)
    lines = {line["side"]: line for line in sweep.table(made_up(settings))}
    assert [line["padded_width"] for line in lines.values()] == [40] * 3
    assert [line["seconds"] for line in lines.values()] == [4.0, 1.0, 2.0]
    assert lines[PADDED]["flop_per_s"] == 2 * 3 * 33 * 16
    assert lines[PADDED]["bytes_per_s"] == 2 * (33 * 16 + 3 * 49)
    assert [line["ratio_to_torch"] for line in lines.values()] == [1.0, 2.0, 1.0]
    assert lines[OURS]["ratio_low"] is None


def test_a_sweep_that_was_stopped_goes_on_and_times_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings, timed = Settings(**SMALL), []
    measure = sweep._measure

    def stopping(*args: object) -> sweep.Point:
        if len(timed) == 5:
            raise KeyboardInterrupt
        timed.append(args[2:])
        return measure(*args)

    monkeypatch.setattr(sweep, "_measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(settings, tmp_path / "out")
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:-9])  # a line that was cut short is timed again
    first = list(timed)
    timed.clear()
    monkeypatch.setattr(sweep, "_measure", lambda *args: timed.append(args[2:]) or measure(*args))
    found = sweep.sweep(settings, tmp_path / "out")
    assert len(found.results["points"]) == 12
    assert set(timed) & set(first) == {first[-1]}
    assert len(timed) == 12 - 4
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_points_of_another_sweep_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(Settings(**SMALL), tmp_path / "out")
    with pytest.raises(InputError, match=r"\.out\.sweep\.jsonl: holds points of another sweep"):
        sweep.sweep(Settings(**{**SMALL, "rounds": 3}), tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        sweep.sweep(Settings(**SMALL), tmp_path / "taken")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(start=0), "start 0"),
        (dict(stop=20), "widths 30:20"),
        (dict(step=0), "step 0"),
        (dict(rows=()), r"rows \[\]"),
        (dict(rows=(1, 1)), r"rows \[1, 1\]"),
        (dict(rows=(0,)), "rows 0"),
        (dict(dtype="int8"), "dtype 'int8'"),
        (dict(rounds=True), "rounds True"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str):
    with pytest.raises(InputError, match=f"sweep: {message}"):
        Settings(**{**SMALL, **change})


def test_results_of_another_format_are_not_drawn(tmp_path: Path):
    with pytest.raises(InputError, match="'pyprune-sweep/1' is expected"):
        sweep.render({"format": "other"}, tmp_path / "out")


# --- the advice --------------------------------------------------------------------------------------------------


def question(width: int, rows: tuple[int, ...] = (1,)) -> Question:
    return Question(width, 16, "float32", rows, "Test", 1, "2", "none")


def advice(width: int, torch_times: dict[int, float], our_times: dict[int, float], wobble: float = 0.0) -> Advice:
    noise, times = random.Random(0), {TORCH: torch_times, OURS: our_times}
    seconds = {
        side: {
            1: {
                one: [by.get(one, 1.0) * noise.lognormvariate(0, wobble) for _ in range(15)]
                for one in candidates(width)
            }
        }
        for side, by in times.items()
    }
    return Advice(question(width), seconds)


def test_the_choices_are_the_multiples_above_each_once():
    assert candidates(7155) == {7155: 1, 7160: 8, 7168: 16}
    assert candidates(8577) == {8577: 1, 8584: 8, 8592: 16, 8608: 32, 8640: 64, 8704: 128}
    assert candidates(8256) == {8256: 1, 8320: 128, 8448: 256}
    assert candidates(256) == {256: 1}


def test_the_quickest_width_wins_and_the_narrowest_of_those_that_are_as_quick():
    assert advice(8577, {8640: 0.5, 8704: 0.495}, {}).best == 8640
    assert advice(8577, {8640: 0.5, 8704: 0.4}, {}).multiple == 128
    assert advice(8577, {}, {}).best == 8577
    assert advice(8577, {8584: 0.99}, {}).best == 8577, "within the margin"
    assert advice(8577, {8584: 2.0, 8640: 2.0, 8608: 0.9}, {8608: 1.0}).best == 8608


def test_a_gain_within_the_noise_is_no_reason_to_pad():
    assert advice(8577, {8640: 0.9}, {8640: 0.9}).best == 8640
    assert advice(8577, {8640: 0.9}, {8640: 0.9}, wobble=0.5).best == 8577


def test_costs_and_gains_of_a_choice():
    found = advice(8577, {8640: 0.5}, {})
    assert found.cost(8640) == {"parameters": 3 * 16 * 63, "bytes": 4 * 3 * 16 * 63, "share": 8640 / 8577 - 1}
    gain = found.gain(TORCH, 1, 8640)
    assert (gain["median"], gain["low"], gain["high"]) == (2.0, 2.0, 2.0)
    told = found.to_json()
    assert told["best"] == 8640
    assert [choice["width"] for choice in told["choices"]] == list(candidates(8577))
    json.dumps(told, allow_nan=False)


def test_what_was_measured_is_kept_and_not_measured_again(monkeypatch: pytest.MonkeyPatch):
    calls = []
    time_calls = width_advice.time_calls
    monkeypatch.setattr(width_advice, "time_calls", lambda *args: calls.append(args) or time_calls(*args))
    first = advise(37, 16, (3, 1), "float32", rounds=2)
    assert len(calls) == 2
    assert advise(37, 16, (1, 3), "float32") == first
    assert len(calls) == 2
    for changed in (dict(width=38), dict(hidden=17), dict(rows=(1,)), dict(dtype="bfloat16"), dict(again=True)):
        before = len(calls)
        advise(**{**dict(width=37, hidden=16, rows=(1, 3), dtype="float32", rounds=2), **changed})
        assert len(calls) > before, changed
    kept = width_advice.read(width_advice.location())
    assert len(kept) == 5
    assert {(q.width, q.hidden, q.rows, q.dtype) for q in kept} >= {(37, 16, (1, 3), "float32")}


def test_what_is_kept_for_another_machine_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    advise(37, 16, (1,), "float32", rounds=2)
    monkeypatch.setattr(width_advice, "_here", lambda device: ("Another", 1, "2", "none"))
    advise(37, 16, (1,), "float32", rounds=2)
    assert len(width_advice.read(width_advice.location())) == 2


def test_what_is_kept_of_other_kernels_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    for name in ("0.0.1", "0.0.2", "0.0.1"):
        monkeypatch.setattr(width_advice.machine, "version", lambda package, version=name: version)
        advise(37, 16, (1,), "float32", rounds=2)
    assert len(width_advice.read(width_advice.location())) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.update(format="other"),
        lambda data: data["entries"][0]["question"].pop("threads"),
        lambda data: data["entries"][0]["question"].update(extra=1),
        lambda data: data["entries"][0]["seconds"].pop(OURS),
        lambda data: data["entries"][0]["seconds"][TORCH]["1"].pop("40"),
        lambda data: data["entries"][0]["seconds"][TORCH]["1"]["40"].append(1.0),
        lambda data: data["entries"][0]["seconds"][TORCH]["1"].update({"40": [-1.0, 1.0]}),
        lambda data: data["entries"][0]["seconds"][TORCH]["1"].update({"40": ["a", 1.0]}),
    ],
)
def test_a_file_that_is_not_sound_is_named_before_anything_is_timed(spoil, monkeypatch: pytest.MonkeyPatch):
    advise(37, 16, (1,), "float32", rounds=2)
    path = width_advice.location()
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    monkeypatch.setattr(width_advice, "_measured", lambda *args: pytest.fail("timed"))
    with pytest.raises(InputError, match=r"widths\.json: .*advise-width"):
        advise(37, 16, (1,), "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=0), "width 0"),
        (dict(hidden=-1), "hidden -1"),
        (dict(rows=()), "no rows"),
        (dict(rows=(0,)), "rows 0"),
        (dict(dtype="int8"), "dtype 'int8'"),
        (dict(width=True), "width True"),
    ],
)
def test_a_bad_question_is_named(change: dict, message: str):
    with pytest.raises(InputError, match=f"advise: {message}"):
        advise(**{**dict(width=37, hidden=16, rows=(1,), dtype="float32"), **change})
