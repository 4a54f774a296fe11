"""Every script and the notebook of examples/ run as they stand, on their tiny models."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from pyprune.study.recipes.recipe import read_recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "depth_against_width.ipynb"
OUTPUTS = {
    "prune_reload.py": r"blocks \[\d[\d, ]*\] of 6 cut, saved to a temporary directory \(--out DIR keeps it\)\n"
    r"transformers reads 5 blocks; logits are finite: True\n[\d,]+ parameters before, [\d,]+ after\n",
    "runtime_skip.py": r"(skip .*% of them as without skipping\n){3}skipped and removed give the same tokens: True\n",
    "accelerate_hf.py": r"A small random model.*\n"
    r"logits differ by \S+ at most, of \S+\n16 tokens took .* s, accelerated .*\n"
    r"restored to the bit: True\n",
    "score_in_your_tool.py": r"A tiny random model.*\n"
    r"importance of each layer: \{0: .*\}\nlayers to drop: \[\d, \d\]\nfor LLM-Drop: \{.*\}\n"
    r"(.+: perplexity [\d.]+ \([\d.]+ as it is\)\n){4}",
    "repair_and_retrain.py": r"A tiny random model.*\n"
    r"original: perplexity .*\npruned: .*\nrepaired: .*\nretrained: perplexity [\d.]+\n",
}
NEED_OTHER_TOOLS = {"drop_layers_with_mergekit.py", "score_puzzletron_library.py"}
"""Run by tests/scoring/test_other_tools.py, with the files of those tools."""


def test_every_script_has_its_test():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*OUTPUTS, *NEED_OTHER_TOOLS}


def printed(name, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    text = capsys.readouterr().out
    assert re.fullmatch(OUTPUTS[name], text)
    return text


@pytest.mark.parametrize("name", sorted({*OUTPUTS} - {"repair_and_retrain.py"}))
def test_a_script_runs_as_it_stands(name, monkeypatch, capsys):
    printed(name, monkeypatch, capsys)


@pytest.mark.slow
def test_retraining_as_it_stands_brings_back_what_pruning_took(monkeypatch, capsys):
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: retraining by LoRA needs it")
    text = printed("repair_and_retrain.py", monkeypatch, capsys)
    values = [float(value) for value in re.findall(r"perplexity ([\d.]+)", text)]
    assert values[3] < 0.9 * values[1]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_script_says_how_it_is_used(name, monkeypatch, capsys):
    source = (EXAMPLES / name).read_text("utf-8")
    assert f"python examples/{name}" in source.partition('"""\n\nfrom')[0]
    monkeypatch.setattr(sys, "argv", [name, "--nonsense"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


def notebook_cells() -> list[dict[str, object]]:
    return json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


def test_the_code_of_the_notebook_runs(capsys):
    code = ["".join(cell["source"]) for cell in notebook_cells() if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in code:
        # What draws in a notebook alone is left to the test with a kernel.
        exec(compile(cell.replace("from IPython.display import SVG", "SVG = str"), NOTEBOOK.name, "exec"), names)
    assert "skipped and removed agree: True" in capsys.readouterr().out


def test_the_notebook_is_kept_without_outputs():
    for cell in notebook_cells():
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.full
def test_the_notebook_executes_in_a_kernel():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]


def test_the_recipe_measures_each_method_pruned_repaired_and_retrained():
    rows = read_recipe(str(EXAMPLES / "repair_and_retrain.toml")).models
    methods = {row.prune.method for row in rows if row.prune is not None}
    stages = {(row.prune.method, row.repair is not None, row.retrain) for row in rows if row.prune is not None}
    assert {(method, *stage) for method in methods for stage in ((False, False), (True, False), (True, True))} <= stages
    assert rows[0].prune is None
    assert methods == {"depth", "wanda-sp", "flap", "llm-pruner"}
