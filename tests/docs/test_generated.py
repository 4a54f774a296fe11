"""What `make docs` writes is what is committed, and the table of status claims nothing without evidence."""

from __future__ import annotations

import pytest

from bench.pages import __main__ as make_docs
from bench.pages import benchmarks, paper, readme, recovery, status
from bench.pages.results import RESULTS, ratio
from pyprune.study.recipes.names import shipped_recipes


def test_nothing_is_out_of_date():
    assert [str(path) for path in make_docs.out_of_date()] == []


def test_every_result_is_linked_from_the_benchmarks():
    page = benchmarks.page() + recovery.page()
    for file in RESULTS.iterdir():
        assert f"../bench/results/{file.name})" in page


def test_every_recipe_that_has_run_is_on_the_page_of_the_paper():
    page = paper.page()
    for folder in (RESULTS / "recipes").iterdir():
        if folder.name in shipped_recipes():
            assert f"../bench/results/recipes/{folder.name}/table.md)" in page


def test_a_ratio_is_bold_only_where_its_interval_excludes_one():
    assert ratio({"median": 1.304, "low": 1.2, "high": 1.4}) == "**1.30x**"
    assert ratio({"median": 0.9, "low": 0.8, "high": 0.95}) == "**0.90x**"
    assert ratio({"median": 1.02, "low": 0.99, "high": 1.05}) == "~ 1.02x"
    assert ratio({"median": 1.3, "low": None, "high": None}) == "1.30x \\*"


@pytest.mark.parametrize(
    ("row", "why"),
    [('evidence = ["nowhere.json"]', "no such file"), ('state = "proven"', "unknown keys state")],
)
def test_a_claim_without_evidence_is_refused(row: str, why: str, tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "status.toml").write_text(f'[[row]]\nhardware = "a card"\nkernels = "Triton"\n{row}\n')
    monkeypatch.setattr(status, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=why):
        status.declared()


def test_what_has_never_run_says_so():
    assert status.tested({"kernels": "Triton"}, "") == status.NEVER
    assert status.tested({"kernels": "C++", "suite": True}, "") == "the test suite"


def test_a_readme_without_its_parts_is_refused():
    with pytest.raises(ValueError, match="generated parts"):
        readme.filled("# pyprune\n")
