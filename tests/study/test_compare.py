"""The comparison: what is refused before work, what the rows are, and that the results hold all that was measured."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy
import pytest
import torch

from pyprune.errors import InputError
from pyprune.models import load
from pyprune.scoring.calibration import sources
from pyprune.study import compare as module
from pyprune.study import requirements, timing
from pyprune.study.compare import compare
from pyprune.study.config import CalibrationConfig, CompareConfig, ratio_names
from pyprune.study.protocols import Protocol
from pyprune.study.requirements import needed_bytes, prompts_from
from pyprune.study.rows import Row
from pyprune.study.table import table

BRIEF = Protocol(
    "brief", input_tokens=4, output_tokens=(2, 3), warmups=0, runs=2, evaluation_tokens=64, evaluation_window=32
)


@pytest.fixture(scope="module")
def comparison():
    return compare(
        "shape:tiny", ratios=["20%", 0.4], batches=[1, 3], protocol=BRIEF, dtype=torch.float32, samples=2, seq_len=16,
        pad_multiple=8,
    )  # fmt: skip


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr(module, "load", refuse)


@pytest.mark.slow
def test_rows_are_the_original_and_three_forms_for_each_ratio(comparison):
    names = [row["name"] for row in comparison.results["rows"]]
    assert names == [
        "original", "depth 20%", "wanda-sp 20%", "wanda-sp 20%, padded", "depth 40%", "wanda-sp 40%",
        "wanda-sp 40%, padded",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_width_method_has_rows_of_the_same_size(tmp_path):
    methods = ["magnitude-sp", "flap", "llm-pruner", "head-gate"]
    results = compare(
        "shape:tiny", ratios=["40%"], batches=[1], protocol=BRIEF, dtype=torch.float32, samples=2, seq_len=16,
        pad_multiple=8, methods=methods, out=tmp_path / "report",
    ).results  # fmt: skip
    rows = {row["name"]: row for row in results["rows"]}
    assert len(rows) == 2 + 2 * len(methods)
    for method in methods:
        assert rows[f"{method} 40%"]["parameters"] == pytest.approx(rows["depth 40%"]["parameters"], rel=0.005)
        assert rows[f"{method} 40%, padded"]["ppl"] == pytest.approx(rows[f"{method} 40%"]["ppl"], rel=1e-5)
    assert "--methods magnitude-sp,flap,llm-pruner,head-gate" in results["command"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "narrowed by Magnitude-sp, FLAP, LLM-Pruner, Head-gate to the same number" in page


@pytest.mark.parametrize(
    ("methods", "named"), [(["magic"], "method 'magic'"), ([], "methods none"), (["flap", "flap"], "flap")]
)
def test_bad_width_methods_are_refused_before_loading(no_loading, methods, named):
    with pytest.raises(InputError, match=named):
        compare("shape:tiny", methods=methods, protocol=BRIEF)


@pytest.mark.slow
def test_width_matches_the_depth_rows_own_parameter_count(comparison):
    rows = {row["name"]: row for row in comparison.results["rows"]}
    for ratio in ("20%", "40%"):
        depth, width = rows[f"depth {ratio}"]["parameters"], rows[f"wanda-sp {ratio}"]["parameters"]
        assert abs(width - depth) <= 0.005 * depth


def test_padding_changes_the_width_and_not_the_quality(comparison):
    rows = {row["name"]: row for row in comparison.results["rows"]}
    for ratio in ("20%", "40%"):
        bare, padded = rows[f"wanda-sp {ratio}"], rows[f"wanda-sp {ratio}, padded"]
        assert padded["ffn_width"] % 8 == 0
        assert padded["ppl"] == pytest.approx(bare["ppl"], rel=1e-5)


def test_depth_removes_the_blocks_that_the_scores_call_most_removable(comparison):
    results = comparison.results
    removed = next(row["pruning"]["blocks"] for row in results["rows"] if row["name"] == "depth 40%")
    assert sorted(index for _, index in results["scores"]["order"][: len(removed)]) == removed


def test_every_row_engine_batch_and_length_has_all_its_samples(comparison):
    timings = comparison.results["timings"]
    assert len(timings) == 7 * 2 * 2 * 2
    assert {len(timing["seconds"]) for timing in timings} == {2}
    assert {timing["engine"] for timing in timings} == {"hf", "pyprune"}
    assert len(comparison.table()) == len(timings)


def test_the_results_survive_json_and_hold_no_nan(comparison):
    text = json.dumps(comparison.results, allow_nan=False)
    assert table(json.loads(text)) == comparison.table()


@pytest.mark.slow
def test_saving_writes_the_whole_report(comparison, tmp_path):
    comparison.save(tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["figure1.png", "figure2.png", "index.html", "results.json", "table.csv"]


def test_both_engines_give_as_many_tokens_as_asked_for():
    decoder = load("shape:tiny")
    prompts = torch.arange(8).view(2, 4)
    # Hugging Face gives prompt and new tokens, the engine the new ones alone; greedy, so they are the same ones.
    theirs = timing.hugging_face(decoder)(prompts, 3)
    assert theirs.shape == (2, 7)
    assert torch.equal(timing.ours(decoder, 2, 7)(prompts, 3), theirs[:, 4:])


def test_an_end_token_does_not_cut_hugging_faces_run_short():
    plain = load("shape:tiny")
    prompts = torch.arange(8).view(2, 4)
    first = int(timing.hugging_face(plain)(prompts, 1)[0, 4])
    ending = replace(plain, config={**plain.config, "eos_token_id": first}, generation_config={"eos_token_id": first})
    assert timing.hugging_face(ending)(prompts, 5).shape == (2, 9)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, "ratios none"),
        ({"ratios": ["20%", 0.2]}, "ratios 20%, 20%"),
        ({"ratios": ["6"]}, "ratio '6': a share"),
        ({"ratios": ["120%"]}, "120%"),
        ({"batches": []}, "batch none"),
        ({"batches": [1, 1]}, "batch 1, 1"),
        ({"batches": [0]}, "batch 0: 1 to 256"),
        ({"batches": [257]}, "batch 257: 1 to 256"),
        ({"protocol": "slow"}, "protocol 'slow'"),
        ({"pad_multiple": 1}, "pad multiple 1"),
        ({"samples": 0}, "samples 0"),
        ({"dtype": "int8"}, "dtype int8: float32"),
        ({"evaluations": ()}, "evaluations none"),
        ({"device": "sofa"}, "device sofa: cannot be used .*; accepted here: cpu"),
        ({"device": "cuda:99"}, "device cuda:99: cannot be used .*; accepted here: cpu"),
        ({"text": "no/such/file"}, "no/such/file"),
        ({"eval_text": "no/such/file"}, "no/such/file"),
        ({"criterion": "guess"}, "'guess' given; ppl"),
        ({"depth_criteria": ["ppl", "guess+"]}, "'guess' given; ppl"),
        ({"depth_criteria": ["ppl", "ppl"]}, "depth criteria ppl, ppl"),
        ({"depth_criteria": ["ppl"], "criterion": "taylor"}, "criterion taylor and depth criteria ppl: one of the two"),
        ({"unit": "layer"}, "'layer' given"),
        ({"protect": "middle=1"}, "'middle=1'"),
        ({"search": "luck"}, "method: 'luck' given; one-shot"),
        ({"search": "greedy", "criterion": "taylor"}, "method greedy accepts ppl"),
        ({"checkpoints": {"mine": "no/such/dir"}}, "--with mine: no/such/dir"),
        ({"checkpoints": [("mine", "shape:tiny"), ("mine", "shape:tiny")]}, "rows .*mine, mine"),
        ({"checkpoints": {"original": "shape:tiny"}}, "rows original, .*original"),
        ({"checkpoints": {"depth 20%": "shape:tiny"}}, "rows original, depth 20%"),
        ({"checkpoints": {"a=b": "shape:tiny"}}, "checkpoint 'a=b'"),
        ({"limit": 3}, "limit 3: belongs to tasks"),
        ({"tasks": []}, "tasks none"),
        ({"tasks": ["boolq"], "limit": 0}, "limit 0"),
        ({"resume": True}, "--resume: finished work is kept beside --out"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(options, message):
    with pytest.raises(InputError, match=message):
        compare("shape:tiny", **options)


@pytest.mark.usefixtures("no_loading")
def test_a_taken_output_directory_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(InputError, match="not empty"):
        compare("shape:tiny", out=tmp_path)


def test_a_ratio_that_no_block_count_meets_is_refused_before_scoring(monkeypatch):
    monkeypatch.setattr(module, "choose_prunings", None)
    with pytest.raises(InputError, match="5"):
        compare("shape:tiny", ratios=["5%"], protocol=BRIEF)


def test_only_too_little_memory_for_the_original_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(requirements.memory, "available", lambda device: 12345)
    needed = needed_bytes(load("shape:tiny"), CompareConfig(protocol=BRIEF))
    with pytest.raises(InputError, match=f"about {needed} bytes more for the original .* and 12345 are available on c"):
        compare("shape:tiny", protocol=BRIEF)


def test_a_context_too_short_for_the_protocol_is_refused():
    shape = "shape:hidden=16,blocks=4,heads=2,kv_heads=1,head_dim=8,ffn=24,vocab=40"
    with pytest.raises(InputError, match=r"a context of 2048 tokens; .* needs 3012"):
        compare(shape, batches=[1], protocol=replace(BRIEF, input_tokens=12, output_tokens=(3000,)))


def test_prompts_follow_each_other_in_the_text():
    assert prompts_from(torch.arange(12).view(3, 4), 2, 5).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_text_too_short_for_the_prompts_begins_again():
    assert prompts_from(torch.arange(5).view(1, 5), 3, 4).tolist() == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_ratios_are_named_as_percentages_however_they_are_given():
    assert ratio_names(["20%", 0.275, "0.3"]) == ("20%", "27.5%", "30%")


def test_the_command_that_is_published_reads_back_and_names_no_folders(comparison, tmp_path):
    import shlex

    from pyprune.cli import build_parser

    words = shlex.split(comparison.results["command"].replace("brief", "quick"))
    options = build_parser().parse_args(words[1:])
    assert (options.model, options.ratios, options.batch) == ("shape:tiny", ["20%", "40%"], [1, 3])
    assert (options.samples, options.seq_len, options.pad_to, options.dtype) == (2, 16, 8, "float32")
    assert (options.device, comparison.results["settings"]["device"]) == ("cpu", "cpu")
    calibration = CalibrationConfig(text=tmp_path / "novels.txt")
    shown = CompareConfig(protocol=BRIEF, calibration=calibration).command("m")
    assert "--text novels.txt" in shown
    assert str(tmp_path) not in shown


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratios": ("35%", "20%"), "batches": (4, 2), "protocol": "paper", "dtype": torch.float16, "device": "cuda:1"},
        {"methods": ("flap", "head-gate"), "pad_multiple": 8, "eval_text": "wiki text.txt"},
        {
            "text": "hf:org/name:en:train",
            "field": "body",
            "packing": "documents",
            "bos": "each",
            "seed": 7,
            "samples": 3,
        },
        {"criterion": "magnitude+", "unit": "ffn", "protect": "first=1,last=1"},
        {"depth_criteria": ("ppl", "taylor+"), "checkpoints": {"mine": "shape:tiny", "other one": "shape:tiny"}},
        {"search": "greedy", "tasks": ("boolq", "piqa"), "limit": 20},
    ],
)
def test_the_command_of_a_configuration_gives_that_configuration(options):
    from pyprune.cli import build_parser

    config = CompareConfig.of(**options)
    read = build_parser().parse_args(config.argv("shape:tiny")[1:])
    assert CompareConfig.from_options(read) == config


def test_keywords_and_a_configuration_are_the_same_and_not_both():
    assert CompareConfig.of(samples=3, dtype=torch.float32) == CompareConfig(
        calibration=CalibrationConfig(samples=3), dtype="float32"
    )
    with pytest.raises(TypeError, match="a configuration and samples"):
        compare("shape:tiny", CompareConfig(), samples=3)
    with pytest.raises(TypeError, match="sample"):
        compare("shape:tiny", sample=3)


def test_the_calibration_defaults_are_those_of_the_functions_it_configures():
    import inspect

    from pyprune.scoring import calibration

    parameters = inspect.signature(calibration.calibration).parameters
    for field in fields(CalibrationConfig):
        assert parameters[field.name].default == field.default, field.name


def test_memory_is_asked_of_the_device_that_the_rows_are_on(monkeypatch):
    asked = []
    monkeypatch.setattr(requirements.memory, "available", asked.append)
    decoder = load("shape:tiny")
    requirements.check_memory(decoder, CompareConfig(protocol=BRIEF))
    assert asked == [decoder.device]


def test_every_timed_run_ends_with_the_device_idle(monkeypatch):
    waits = []
    monkeypatch.setattr(timing, "synchroniser", lambda device: lambda: waits.append(device.type))
    decoder = load("shape:tiny")
    rows = [Row("original", "original", None, decoder, None)]
    brief = replace(BRIEF, output_tokens=(1,), warmups=0, runs=2)
    timing.time_rows(rows, torch.arange(8).view(2, 4), [1], brief)
    # One row, two engines, two rounds: waited for before and after each run.
    assert waits == ["cpu"] * 8


def test_the_held_out_text_may_not_be_the_calibration_text_by_default_either(monkeypatch):
    monkeypatch.setattr(requirements.texts, "require_text", lambda *given: None)
    with pytest.raises(InputError, match="--eval-text demo:boolq: is the calibration text"):
        compare("smollm2-135m", text="demo:boolq")


def test_each_text_is_read_once(tmp_path, monkeypatch):
    paths = {name: tmp_path / f"{name}.npy" for name in ("calibration", "held-out")}
    for seed, path in enumerate(paths.values()):
        numpy.save(path, numpy.random.default_rng(seed).integers(0, 100, size=200))
    reads = []
    read_token_file = sources.read_token_file

    def counted(name):
        reads.append(name)
        return read_token_file(name)

    monkeypatch.setattr(sources, "read_token_file", counted)
    config = CompareConfig.of(
        text=paths["calibration"], eval_text=paths["held-out"], samples=2, seq_len=16, protocol=BRIEF
    )
    texts = requirements.check_texts("shape:tiny", config)
    decoder = load("shape:tiny")
    calibration, material = module.tokenised(decoder, config, texts)
    assert reads == [str(path) for path in paths.values()]
    # As from the files themselves.
    again, material_again = module.tokenised(decoder, config, requirements.ReadTexts(None, None))
    assert len(reads) == 4
    assert calibration.fingerprint == again.fingerprint
    assert material.windows.fingerprint == material_again.windows.fingerprint
    assert torch.equal(calibration.input_ids, again.input_ids)
    assert torch.equal(material.windows.input_ids, material_again.windows.input_ids)
