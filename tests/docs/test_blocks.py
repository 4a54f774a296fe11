"""The code of README and docs: Python runs, a page as one session; commands are accepted; what is marked so runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pyprune.cli import build_parser, main
from pyprune.models import families, load, load_sizes
from tests.docs.blocks import blocks, commands, pages, session

BLOCKS_30 = "shape:hidden=16,blocks=30,heads=2,kv_heads=1,head_dim=8,ffn=20,vocab=40"
QUICKER = {
    "docs/reference/scoring.md": "shape:hidden=16,blocks=30,heads=2,kv_heads=2,head_dim=8,ffn=20,vocab=40",
    "docs/reference/criteria.md": BLOCKS_30,
    "docs/guides/score-in-your-tool.md": BLOCKS_30,
}
"""Models of as many blocks as the page's that are quicker."""
READS_TEXT = ("README.md", "docs/quickstart.md", "docs/reference/evaluation.md")
"""Pages whose Python takes a model's perplexity many times on a text, and says nothing of the numbers: a small model
with SmolLM2's tokenizer does. `make test-full` runs them with the real one too."""
PRINTED = {
    "README.md": r"tensor\(\[\[.*\]\]\)\n",
    "docs/quickstart.md": r"tensor\(\[\[.*\]\]\)\n",
    "docs/guides/study-a-width.md": r"\[512, 7155\] \(7168, 1\)\n\['weight', 'bias'\]\n\[512, 7155\]\n",
    "docs/guides/extend.md": r"3 heads, 3 blocks\n",
    "docs/reference/models.md": (
        r"\[0, 0, 8, 8\]\n\[\(0, 0\), \(2, 8\), \(3, 8\)\]\n\d+\.\d+\n"
        r"4 (\[.*\])\ntorch\.Size\(\[1, 36\]\)\n"
    ),
    "docs/reference/generation.md": r".*Paris.*",
    "docs/reference/checkpoints.md": "pyprune_llama 1 KV head in layer 0\n4 blocks in torch.bfloat16\n",
    "docs/reference/width.md": r"width flap \d+ \d+\n6 blocks\n",
}
"""What a page's session prints; of the others it has to end without an error."""
NEEDS = {"docs/reference/transformers.md": ("peft", "lm_eval")}
WITH_PYTHON = [page for page in pages() if session(page)]
REAL = [page for page in WITH_PYTHON if page not in QUICKER and "smollm2-135m" in session(page)]


@pytest.fixture(scope="module")
def reads_text(tmp_path_factory) -> Path:
    """A small random model of 30 blocks, which hold half of its parameters, with SmolLM2's tokenizer."""
    small = load("shape:hidden=64,blocks=30,heads=4,kv_heads=2,head_dim=16,ffn=512,vocab=49152")
    folder = tmp_path_factory.mktemp("model") / "reads-text"
    replace(small, tokenizer_source=load_sizes("smollm2-135m").tokenizer_source).save(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "quick"),
    [
        pytest.param(page, quick, marks=[*([pytest.mark.real_model] if page in REAL else []), *marks])
        for page in WITH_PYTHON
        for quick, marks in ((True, []), *([(False, [pytest.mark.full])] if page in READS_TEXT else []))
    ],
)
def test_the_python_of_a_page_runs_as_one_session(page: str, quick: bool, monkeypatch, capsys, tmp_path, request):
    for library in NEEDS.get(page, ()):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)  # the worked example enters a family: put back after
    code = session(page)
    if quick and page in (*QUICKER, *READS_TEXT):
        assert '"smollm2-135m"' in code
        quicker = QUICKER.get(page) or request.getfixturevalue("reads_text").as_posix()
        code = code.replace('"smollm2-135m"', f'"{quicker}"')
    exec(compile(code, page, "exec"), {"__name__": page})
    assert re.fullmatch(PRINTED.get(page, ".*"), capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "bash", "sh")])
def test_the_commands_of_a_page_are_accepted(page: str):
    for block in blocks(page, "bash", "sh"):
        for line in commands(block.text):
            words = shlex.split(line, comments=True)
            if words[0] == "pyprune" or words[:1] == ["torchrun"]:
                words = words[words.index("pyprune") + 1 :]
                if words[:2] != ["lm-eval", "run"]:  # lm-eval's own options
                    build_parser().parse_args(words)


RUNNABLE = [page for page in pages() if any(block.mark == "runs" for block in blocks(page, "bash", "sh"))]


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "quick"),
    [
        pytest.param(page, quick, marks=marks)
        for page in RUNNABLE
        for quick, marks in ((True, []), (False, [pytest.mark.full]))
    ],
)
def test_marked_commands_run(page: str, quick: bool, monkeypatch, capsys, tmp_path, request):
    monkeypatch.chdir(tmp_path)
    model = request.getfixturevalue("reads_text").as_posix() if quick else "smollm2-135m"
    for block in blocks(page, "bash", "sh"):
        if block.mark == "runs":
            for line in commands(block.text):
                program, *words = (model if word == "smollm2-135m" else word for word in shlex.split(line))
                assert (program, main(words)) == ("pyprune", 0), capsys.readouterr().err


def test_the_quickstart_is_run():
    assert "README.md" in WITH_PYTHON
    assert RUNNABLE == ["docs/quickstart.md"]
