"""What doctor and compare print."""

from __future__ import annotations

import json

import torch

from pyprune.ops import gpu
from pyprune.ops.schemas import digest
from tests.cli.command_line import FEW, TINY, run


def test_doctor_names_the_processor_and_the_native_code_path(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["machine"]["versions"]["torch"]
    assert {"model", "texts"} == set(found["demonstration"])
    assert found["native"]
    assert run(capsys, "doctor")[0] == 0


def test_doctor_says_whether_the_installation_carries_the_cuda_library(capsys, monkeypatch, tmp_path):
    file = tmp_path / f"_cuda_{digest()}.so"
    monkeypatch.setattr(gpu, "CUDA_LIBRARY_PATH", file)

    def told() -> str:
        code, out, _ = run(capsys, "doctor", "--json")
        assert code == 0
        return json.loads(out)["cuda_library"]

    assert told() == f"none: {file.name} was not built; GPUs use Triton alone"
    file.write_bytes(f"pyprune library: digest={digest()} targets=80,90a-real toolkit=13.0.88;".encode())
    targets = "sm_80, sm_90a, later GPUs by PTX of compute_80 (CUDA 13.0.88)"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert told() == f"{targets}; not loaded: this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert told() == targets


def test_doctor_names_every_gpu_with_its_kernels_and_the_reason(capsys, monkeypatch):
    devices = [
        {"device": "cuda:0", "name": "H100", "reason": "cuda"},
        {"device": "cuda:1", "name": "RTX", "reason": "not checked; run `pyprune doctor --gpu --device 1` once"},
    ]
    report = {**gpu.report(), "devices": devices}
    monkeypatch.setattr(gpu, "report", lambda: report)
    code, out, _ = run(capsys, "doctor")
    text = " ".join(out.split())
    assert code == 0
    assert "GPU kernels, cuda:0 (H100) cuda" in text
    assert "GPU kernels, cuda:1 (RTX) not checked;" in text
    assert json.loads(run(capsys, "doctor", "--json")[1])["gpu"]["devices"] == devices


def test_compare_writes_the_report_and_prints_json_with_the_table(capsys, tmp_path):
    target = tmp_path / "report"
    code, out, err = run(
        capsys, "compare", TINY, *FEW, "--batch", "1", "--dtype", "fp32", "--out", str(target), "--json"
    )
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {line["row"] for line in found["table"]} == {row["name"] for row in found["rows"]}
    written = json.loads((target / "results.json").read_text("utf-8"))
    found.pop("table")
    assert written == found


def test_without_a_terminal_no_progress_is_written(capsys):
    code, _, err = run(capsys, "score", TINY, *FEW)
    assert (code, err) == (0, "")
