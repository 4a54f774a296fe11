"""What stands around the code: the workflow, templates, citation and release checklist say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import pyprune

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_is_there(workflow):
    content = yaml.safe_load(workflow.read_text("utf-8"))
    commands = [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    made = {word for command in commands for word in re.findall(r"\bmake ([a-z-]+)", command)}
    assert made >= {"lint", "test", "check-wheel"}
    assert made <= TARGETS
    for script in (command for command in commands if not command.startswith("make ")):
        assert (ROOT / script.split()[0]).is_file(), script
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 120


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_form_has_what_forms_need(template):
    content = yaml.safe_load(template.read_text("utf-8"))
    assert content.keys() >= {"name", "description", "body"}
    assert all(part["attributes"]["label"] for part in content["body"] if part["type"] != "markdown")
    identifiers = [part["id"] for part in content["body"] if "id" in part]
    assert len(set(identifiers)) == len(identifiers) > 0


def test_the_citation_is_whole_and_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "version", "license"}
    assert citation["version"] == pyprune.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0)?", pyprune.__version__)


def test_the_readme_and_the_guide_cite_the_titles_of_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    (paper,) = citation["references"]
    readme, guide = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/guides/reproduce-the-paper.md"))
    assert f"title = {{{citation['title']}}}" in readme
    assert f"title = {{{paper['title']}}}" in readme
    assert f"*{paper['title']}*" in guide
    (identifier,) = paper["identifiers"]
    assert identifier["value"] in readme
    assert identifier["value"] in guide


def test_the_release_checklist_names_commands_and_files_that_are_there():
    text = (ROOT / "RELEASING.md").read_text("utf-8")
    made = set(re.findall(r"`make ([a-z-]+)`", text))
    assert len(made) >= 3
    assert made <= TARGETS
    for name in re.findall(r"`([\w/]+\.(?:py|md|cff))`", text):
        assert (ROOT / name).is_file(), name
    (steps,) = [re.findall(r"^(\d+)\. ", text, re.MULTILINE)]
    assert steps == [str(number) for number in range(1, len(steps) + 1)]


def test_the_sites_settings_are_read():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert settings["site_name"] == "pyprune"
    assert settings["site_description"].startswith("Structured pruning")
    for hook in settings["hooks"]:
        assert (ROOT / hook).is_file(), hook


def test_nothing_names_a_machine_or_a_mirror():
    names = (
        "Makefile", "mkdocs.yml", "SECURITY.md", "RELEASING.md", "CITATION.cff", ".github/pull_request_template.md",
    )  # fmt: skip
    folders = ((ROOT / name).glob("*") for name in ("examples", ".ci"))
    files = [*WORKFLOWS, *TEMPLATES, *(ROOT / name for name in names), *(path for folder in folders for path in folder)]
    texts = {path: path.read_text("utf-8") for path in files if path.is_file()}
    assert len(texts) > 15
    for path, text in texts.items():
        assert not re.findall(r"https?://|(?<![\w.])/(?:root|home|tmp|work|opt)/", text), path
