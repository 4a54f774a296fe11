"""The one-command GPU check: its control flow on a CPU, and that it tells what is wrong instead of hiding it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import pyprune
from bench.gpu_check import attention, cpu_operators, install, operators, parts, runner, scoring, table1
from bench.gpu_check.__main__ import main
from bench.gpu_check.child import finite
from bench.gpu_check.decode import timing
from bench.gpu_check.parts import Part, best_mode, chosen, groups
from bench.gpu_check.runner import Check
from bench.gpu_check.settings import ROOT, Settings
from bench.gpu_check.slice import cut
from bench.gpu_check.summary import summary
from pyprune import ops
from pyprune.errors import InputError
from pyprune.models.transformers_model import to_transformers
from pyprune.ops import native
from pyprune.ops.self_check.cases import cases
from pyprune.pruning.budget import UniformSizes

TINY = "shape:tiny"
OF_A_CPU = {"compress_bfloat16", "decompress_bfloat16", "dequantize_gguf"}
OPERATORS = set(ops.contracts.SCHEMAS) - {"decode_step"} - OF_A_CPU  # the first is made of the others


# --- the whole of it, on a CPU ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slice_folder(tmp_path_factory):
    shape = pyprune.load("shape:hidden=32,blocks=4,heads=4,kv_heads=2,head_dim=8,ffn=44,vocab=300,tied=1")
    folder = tmp_path_factory.mktemp("slice") / "model"
    cut(shape.to(torch.bfloat16), blocks=2, vocabulary=200).save(folder)
    return folder


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory, slice_folder):
    folder = tmp_path_factory.mktemp("check")
    command = [sys.executable, "-m", "bench.gpu_check", "--out", str(folder), "--dry-run", "--seed", "7"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--model", str(slice_folder)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400
    )
    return done, json.loads((folder / runner.RESULT_FILE).read_text()), folder


def test_a_dry_run_does_every_part_or_says_why_not(dry_run):
    done, results, _ = dry_run
    assert (done.returncode, done.stderr) == (0, "")
    expected = [part.name for stage in chosen(None, True, "a model") for part in stage]
    assert sorted(part["name"] for part in results["parts"]) == sorted(expected)
    for part in results["parts"]:
        assert part["status"] in ("done", "skipped"), part
        assert (part["why"] is not None) == (part["status"] == "skipped"), part
    kinds = {part["group"] for part in results["parts"] if part["status"] == "done"}
    assert kinds == set(groups()) - {"install", "sanitizer"}


def test_a_dry_run_passes_every_case_of_every_operator_and_names_its_numbers(dry_run):
    found = {part["name"]: part.get("result", {}) for part in dry_run[1]["parts"]}
    checked = {name: told for name, told in found.items() if name.startswith("operators-")}
    assert len(checked) == 3 * 3 + 1
    for told in checked.values():
        assert told["failed"] == 0
        assert told["passed"] == told["of"] == len(told["cases"]) > 0
    for dtype in parts.DTYPES:
        shares = [checked[f"operators-triton-{dtype}-{share}"]["cases"] for share in parts.SHARES]
        assert {case["operator"] for share in shares for case in share} == OPERATORS
        assert sum(map(len, shares)) == len(list(cases(7, "tiny")))
    assert found["cpu-operators"]["isas"] == native.runnable_isas()
    assert (found["cpu-operators"]["failed"], found["cpu-operators"]["passed"] > 0) == (0, True)
    assert found["ceilings"]["bandwidth"] > 0
    decode = found["decode-cuda"]["timings"]
    assert all(line["errors"] == {} and line["speedup"]["median"] > 0 and line["pyprune_share"] > 0 for line in decode)
    assert found["scoring-triton"]["largest_relative_difference"] < 0.05
    for line in found["attention-triton"]["timings"]:
        assert (line["failures"], set(line["seconds"])) == ({}, {"sdpa", "pyprune"})
        assert max(line["errors"].values()) < 0.02
    skipped = found["skipping"]
    assert (skipped["same_tokens"], skipped["errors"]) == (True, {})
    assert set(skipped["step_seconds"]) == {"nothing", "host", "mask", "clear mask"}
    assert len(found["profile"]["runs"]) == 2
    assert all(run["kernels"] and run["seconds"] > 0 for run in found["profile"]["runs"])
    assert (found["compiled"]["absent"], len(found["compiled"]["seconds"])) == ({}, 2)
    assert found["compiled"]["speedup"]["median"] > 0
    warmed = {name.removeprefix("warm-"): len(told["done"]) for name, told in found.items() if name.startswith("warm-")}
    assert warmed == {"decode": 7, "scoring": 1, "table1-even": 9, "table1-odd": 8}
    model = found["model-cuda"]
    assert all(prompt["tokens_as_our_cpu_path"] == 1 and prompt["same_tokens_twice"] for prompt in model["prompts"])
    rows = found["table1"]["rows"]
    assert [row["name"] for row in rows[:4]] == ["original", "depth 20%", "wanda-sp 20%", "wanda-sp padded 20%"]
    assert found["table1"]["errors"] == {}
    assert len(found["table1"]["timings"]) == (len(rows) + 2) * 2 * 2  # the original is timed in each of three groups
    assert all("ppl" not in row for row in rows)


def test_a_dry_run_publishes_no_folder_and_ends_with_the_table(dry_run, slice_folder):
    done, results, folder = dry_run
    text = json.dumps(results)
    for place in (ROOT, folder, slice_folder.parent, sys.prefix):
        assert str(place) not in text
    assert done.stdout.rstrip().endswith(summary(results))
    assert "dry run on a CPU" in done.stdout


# --- parts and options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--only", "decode,speed"], "--only speed"),
        (["--model", "no-such-folder"], "--model no-such-folder"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_a_wrong_option_is_named_and_exits_2(words, named, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new"), "--dry-run", *words]) == 2
    assert named in capsys.readouterr().err


def test_results_that_are_there_already_are_not_overwritten(tmp_path, capsys):
    (tmp_path / runner.RESULT_FILE).write_text("kept")
    assert main(["--out", str(tmp_path), "--dry-run"]) == 2
    assert (tmp_path / runner.RESULT_FILE).read_text() == "kept"


def test_only_keeps_the_named_groups_in_their_order():
    names = [part.name for stage in chosen(["table1", "ceilings"], False, None) for part in stage]
    assert names == ["ceilings", "table1"]


def test_only_takes_single_parts_too():
    names = [part.name for stage in chosen(["operators-cuda", "scoring"], False, None) for part in stage]
    assert names == ["operators-cuda", "scoring-triton", "scoring-definitions"]


def test_the_limits_leave_the_whole_within_nine_minutes():
    from bench.gpu_check.__main__ import LIMIT_S

    assert LIMIT_S < 540


def decoded(mode: str, status: str = "done", timing: dict | None = None) -> dict:
    timings = [{"pyprune_share": 0.5}, timing or {"pyprune_share": None}]
    return {"group": "decode", "mode": mode, "status": status, "result": {"timings": timings}}


@pytest.mark.parametrize(
    ("done", "mode"),
    [
        ([decoded("cuda"), decoded("triton")], "cuda"),
        ([decoded("cuda", "failed"), decoded("triton")], "triton"),
        ([decoded("cuda", timing={"errors": {"pyprune, 32 new": "no kernel"}}), decoded("triton")], "triton"),
        ([decoded("cuda", "failed"), decoded("triton", "failed")], "definitions"),
        ([decoded("cuda", "failed"), decoded("triton", "stopped", {"errors": {}})], "definitions"),
        ([decoded("cuda", "failed")], "triton"),
        ([decoded("cuda", "stopped")], "cuda"),
    ],
)
def test_later_parts_take_the_best_mode_that_could_decode(done, mode):
    assert best_mode(done) == mode


# --- running parts ------------------------------------------------------------------------------------------------


def script(text: str, **options) -> Part:
    """A part that runs `text` in place of the check's own child; the settings are the last argument."""
    prefix = (sys.executable, "-c", "import json, sys, time\ntold = json.loads(sys.argv[-1])\n" + text)
    return Part(**{"name": "script", "group": "ceilings", "limit_s": 20.0, "prefix": prefix, "gpu": False, **options})


@pytest.fixture
def check(tmp_path):
    return Check(tmp_path, Settings("", "", dry_run=True), 60.0, gpu=False, tell=lambda line: None)


def written(folder) -> dict:
    return json.loads((folder / runner.RESULT_FILE).read_text())


def test_a_part_past_its_limit_is_ended_with_all_it_started_and_keeps_what_it_had(check, tmp_path):
    text = f"""
import subprocess
child = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
json.dump({{"complete": False, "error": None, "result": {{"half": 1}}}}, open(told["out"], "w"))
time.sleep(60)
"""
    began = time.monotonic()
    [part] = check.run([[script(text, limit_s=1.5)]])["parts"]
    assert time.monotonic() - began < 15
    assert (part["status"], part["result"]) == ("stopped", {"half": 1})
    assert "limit of 2 s" in part["why"]
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)
    assert written(tmp_path)["parts"] == [part]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_breaks_says_how_and_the_next_one_runs(check, tmp_path):
    broken = script("print('on the way'); sys.exit('no such kernel')", name="broken")
    fine = script(
        "json.dump({'complete': True, 'error': None, 'result': {'x': 1}}, open(told['out'], 'w'))", name="fine"
    )
    first, second = check.run([[broken], [fine]])["parts"]
    assert (first["status"], first["why"]) == ("failed", "no such kernel")
    assert "on the way" in first["output_tail"]
    assert (second["status"], second["result"], second["why"]) == ("done", {"x": 1}, None)


def test_without_a_gpu_or_without_time_a_part_is_skipped_with_the_reason(check):
    check.deadline = time.monotonic() + 3
    parts_ = check.run([[script("", gpu=True)], [script("", name="late")], [script("", skip="because")]])["parts"]
    assert [part["status"] for part in parts_] == ["skipped"] * 3
    assert [part["why"] for part in parts_][::2] == ["torch finds no NVIDIA GPU", "because"]
    assert "no time left: 3 s of 60 s" in parts_[1]["why"]


def test_parts_of_one_stage_run_side_by_side(check, tmp_path):
    def meets(mine: str, other: str) -> str:
        return f"""
import pathlib
pathlib.Path({str(tmp_path / mine)!r}).touch()
while not pathlib.Path({str(tmp_path / other)!r}).exists():
    time.sleep(0.05)
json.dump({{"complete": True, "error": None, "result": {{}}}}, open(told["out"], "w"))
"""

    both = [script(meets("a", "b"), name="a"), script(meets("b", "a"), name="b")]
    assert [part["status"] for part in check.run([both])["parts"]] == ["done", "done"]


def test_the_measured_bandwidth_reaches_the_parts_after_it(check):
    measure = script(
        "json.dump({'complete': True, 'error': None, 'result': {'bandwidth': 5.0}}, open(told['out'], 'w'))",
        name="ceilings",
    )
    use = script("json.dump({'complete': True, 'error': None, 'result': told}, open(told['out'], 'w'))", name="use")
    assert check.run([[measure], [use]])["parts"][1]["result"]["bandwidth"] == 5.0


def test_a_build_that_fails_is_told_with_the_end_of_its_output():
    step = install.attempt([sys.executable, "-c", "print('compiling'); raise SystemExit(3)"], "0")
    assert (step["returncode"], step["output_tail"]) == (3, "compiling\n")


def test_a_cuda_library_that_does_not_compile_does_not_cost_the_rest(monkeypatch):
    without_cuda = ("-c", "import os, sys; sys.exit(os.environ['PYPRUNE_CUDA'] != '0')")
    monkeypatch.setattr(install, "ATTEMPTS", ((without_cuda, "auto"), (without_cuda, "0"), (("-c", "1 / 0"), "0")))
    saved = []
    result = install.run(Settings("install", ""), saved.append)
    assert [step["returncode"] for step in result["steps"]] == [1, 0]
    monkeypatch.setattr(install, "ATTEMPTS", ((("-c", "1 / 0"), "0"),))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        install.run(Settings("install", ""), saved.append)


def test_infinities_become_words_that_json_has():
    assert json.dumps(finite({"a": [float("inf"), 1.5], 2: float("nan")})) == '{"a": ["inf", 1.5], "2": "nan"}'


# --- operators ----------------------------------------------------------------------------------------------------


def test_a_case_that_hangs_can_be_named_from_what_was_kept():
    kept = []
    settings = Settings("operators", "", dry_run=True, options={"dtype": "float32"})
    result = operators.run(settings, kept.append)
    assert kept[2]["trying"] == f"float32 {result['cases'][2]['operator']} {result['cases'][2]['case']}"
    assert "trying" not in result


def test_after_a_broken_device_the_next_case_is_tried_in_a_fresh_process(monkeypatch, tmp_path):
    def broken(*_: object) -> None:
        raise RuntimeError("illegal memory access")

    restarted = {}

    def execv(program: str, words: list[str]) -> None:
        restarted.update(json.loads(words[-1]))
        raise SystemExit

    settings = Settings("operators", str(tmp_path / "out.json"), dry_run=True, options={"dtype": "float32"})
    monkeypatch.setattr(ops, "padded_linear", broken)
    monkeypatch.setattr(operators, "_device_works", lambda device: False)
    monkeypatch.setattr(os, "execv", execv)
    kept = []
    with pytest.raises(SystemExit):
        operators.run(settings, lambda result: kept.append(result))
    done = len(kept[-1]["cases"])
    assert restarted["options"] == {"dtype": "float32", "first": done, "restarts": 1}
    # The fresh process goes on with what was kept, and gives up after a few of these.
    (tmp_path / "out.json").write_text(json.dumps({"result": {"cases": kept[-1]["cases"]}}))
    monkeypatch.undo()
    whole = operators.run(Settings(**restarted), lambda result: None)
    assert len(whole["cases"]) == whole["of"]
    assert whole["failed"] == 1
    monkeypatch.setattr(operators, "_device_works", lambda device: False)
    monkeypatch.setattr(ops, "norm_head", broken)
    worn = replace(settings, options={**settings.options, "restarts": operators.MOST_RESTARTS})
    with pytest.raises(RuntimeError, match="were not tried"):
        operators.run(worn, lambda result: None)


def test_without_pytest_our_own_loop_goes_through_every_instruction_set():
    before = native.selected_isa()
    told = cpu_operators.own_loop(Settings("cpu_operators", "", dry_run=True))
    assert (told["failed"], told["failures"]) == (0, [])
    assert told["passed"] == 3 * len(list(cases(0, "tiny"))) * len(native.runnable_isas())
    assert native.selected_isa() == before


# --- speeds -------------------------------------------------------------------------------------------------------


def test_a_decode_step_is_the_difference_of_a_long_and_a_short_run():
    samples = {("hf", 5): [9.0], ("hf", 1): [1.0], ("pyprune", 5): [3.0], ("pyprune", 1): [1.0]}
    line = timing(samples, {}, 5, size=100, bandwidth=400.0)
    assert (line["hf_step_seconds"], line["pyprune_step_seconds"]) == (2.0, 0.5)
    assert (line["hf_share"], line["pyprune_share"]) == (0.125, 0.5)
    assert line["speedup"]["median"] == 3.0


def test_attention_that_fails_is_told_and_leaves_the_other_ones_time(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(ops, "decode_attention", broken)
    result = attention.run(Settings("attention", "", dry_run=True), lambda told: None)
    for line in result["timings"]:
        assert line["failures"] == {"pyprune": "RuntimeError: out of shared memory"}
        assert list(line["seconds"]) == ["sdpa"]
        assert "speedup" not in line
    part = {"name": "attention", "group": "attention", "status": "done", "result": result}
    text = summary({"parts": [part], "dry_run": True, "seconds": 1, "limit_s": 2, "seed": 0})
    assert "sdpa" in text
    assert "out of shared memory" in text


def test_a_failed_engine_leaves_the_other_ones_times():
    line = timing({("hf", 5): [9.0], ("hf", 1): [1.0]}, {("pyprune", 5): "no kernel"}, 5, 100, None)
    assert line["hf_step_seconds"] == 2.0
    assert line["errors"] == {"pyprune, 5 new": "no kernel"}
    assert "speedup" not in line
    assert "pyprune_step_seconds" not in line


def test_the_naive_loop_gives_the_scores_of_the_definition_and_leaves_the_model_whole():
    decoder = pyprune.load(TINY)
    ids = torch.randint(0, decoder.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    model = to_transformers(decoder)
    scores = pyprune.score(decoder, ids)
    assert scoring.naive_scores(model, ids) == pytest.approx([scores.baseline, *scores.values], rel=1e-4)
    assert len(model.model.layers) == len(decoder.blocks)


def test_the_rows_are_those_of_the_papers_table_with_padded_twins_of_the_misaligned_ones():
    rows = table1.with_padded(table1.PAPER)
    assert len(table1.PAPER) == 12
    padded = [row.width for row in rows if row.method.endswith("padded")]
    assert padded == [8832, 8640, 7872, 7168, 7552, 7168, 6080, 6784]
    assert not any(row.width % 64 for row in rows if row.method.endswith("padded"))


def test_the_rows_have_the_papers_sizes_in_billions():
    full = UniformSizes.llama(blocks=32, hidden=4096, heads=32, kv_groups=32, head_dim=128, width=11008, vocab=32000)
    billions = {
        ("depth", "20%"): 5.5, ("depth", "27%"): 4.9, ("depth", "35%"): 4.5, ("wanda-sp", "20%"): 5.5,
        ("wanda-sp", "27%"): 4.9, ("wanda-sp", "35%"): 4.5, ("llm-pruner", "20%"): 5.4, ("llm-pruner", "27%"): 4.9,
        ("llm-pruner", "35%"): 4.4, ("flap", "20%"): 5.4, ("flap", "27%"): 4.9, ("flap", "35%"): 4.5,
    }  # fmt: skip
    for row in table1.PAPER:
        count = full.narrowed(row.heads, row.width) if row.blocks == 32 else full.without(32 - row.blocks)
        if row.method == "llm-pruner":  # the paper's count has 6 blocks whole, our uniform row has none
            count = (26 * count + 6 * full.parameters) / 32
        assert count / 1e9 == pytest.approx(billions[row.method, row.ratio], abs=0.06), row


def test_a_narrow_row_is_a_model_that_both_engines_run_alike():
    original = pyprune.load(table1.DRY_SPEC)
    decoder = table1.narrowed(original, 5, 101)
    assert {(block.mha.heads, block.ffn.width) for block in decoder.blocks} == {(5, 101)}
    assert decoder.blocks[0].ffn.down.weight.is_contiguous()
    assert decoder.blocks[0].ffn.gate.weight.data_ptr() == original.blocks[0].ffn.gate.weight.data_ptr()
    ids = torch.arange(6).unsqueeze(0)
    with torch.inference_mode():
        theirs = to_transformers(decoder)(ids).logits[:, -1]
    torch.testing.assert_close(pyprune.Engine(decoder, 1, 8).prefill(ids), theirs, rtol=1e-4, atol=1e-4)


def test_groups_hold_one_ratio_and_no_more_than_fits():
    original = pyprune.load(table1.DRY_SPEC)
    rows = [table1.scaled(row, original) for row in table1.with_padded(table1.PAPER)]
    assert [len(group) for group in table1.grouped(rows, original, None)] == [6, 7, 7]
    most = max(table1.own_bytes(row, original) for row in rows)
    tight = table1.grouped(rows, original, 2 * most)
    assert [row for group in tight for row in group] == rows
    assert all(sum(table1.own_bytes(row, original) for row in group) <= 2 * most for group in tight)
    # A row too large for any group is tried alone: its engine then says what is missing.
    assert [len(group) for group in table1.grouped(rows, original, 1)] == [1] * len(rows)


def test_the_sizes_of_llama_7b_are_taken_as_they_are():
    original = pyprune.load(table1.DRY_SPEC)
    small = table1.scaled(table1.Sizes("20%", "wanda-sp", 32, 26, 8807), original)
    assert (small.blocks, small.heads, small.width) == (4, 6, math.floor(8807 * 172 / 11008))


# --- the slice ----------------------------------------------------------------------------------------------------


def test_a_slice_is_a_model_of_its_own_that_transformers_reads_alike(slice_folder):
    from transformers import AutoModelForCausalLM

    ours = pyprune.load(slice_folder)
    assert (len(ours.blocks), ours.vocab_size, ours.dtype, ours.eos_token_ids()) == (2, 200, torch.bfloat16, ())
    theirs = AutoModelForCausalLM.from_pretrained(slice_folder, dtype=torch.float32)
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        expected = theirs(ids).logits[:, -1]
    result = pyprune.Engine(ours.to(torch.float32), 2, 8).prefill(ids)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_a_slice_larger_than_the_model_is_refused():
    with pytest.raises(InputError, match="at most 4 and 257"):
        cut(pyprune.load(TINY), blocks=5, vocabulary=200)


def test_the_slice_of_the_demonstration_model_stays_under_50_megabytes():
    from bench.gpu_check.slice import BLOCKS, VOCABULARY

    sizes = UniformSizes.llama(
        blocks=BLOCKS, hidden=576, heads=9, kv_groups=3, head_dim=64, width=1536, vocab=VOCABULARY, tied=True
    )
    assert 2 * sizes.parameters < 50e6


def test_compute_sanitizer_is_found_beside_the_compiler(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "compute-sanitizer").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(parts.shutil, "which", lambda name: None)
    [stage] = chosen(["sanitizer"], False, None)
    assert all(part.skip is None and part.prefix[0] == str(tmp_path / "bin" / "compute-sanitizer") for part in stage)
