"""Sentences and columns of a recipe's page: agreement with the paper, claims, and what does not compare."""

from __future__ import annotations

import argparse
import copy
import math
import re

from pyprune.commands import recipe as command
from pyprune.study.recipes.agreement import agreement, compared_pairs, difference, incomparable
from pyprune.study.recipes.report import drawn
from pyprune.study.recipes.table import cells
from pyprune.study.recipes.values import counted


def test_agreement_counts_signs_of_differences_within_groups():
    def row(name, group, ours, theirs, error=0.0):
        return {
            "name": name, "group": group, "method": "depth", "values": {"accuracy": ours},
            "errors": {"accuracy": error}, "losses": {}, "intervals": {}, "paper": {"accuracy": theirs},
            "retrained": False,
        }  # fmt: skip

    rows = [row("a", "1", 10, 20), row("b", "1", 11, 30), row("c", "1", 12, 25, 0.2), row("d", "2", 1, 99)]
    pairs = compared_pairs(rows, "accuracy")
    assert (pairs.agree, pairs.undecided, pairs.against) == (2, 0, [("b", "c")])
    assert pairs.verdict == "agrees in part"
    rows[2]["errors"]["accuracy"] = 1.0
    pairs = compared_pairs(rows, "accuracy")
    assert (pairs.agree, pairs.undecided, pairs.against) == (1, 2, [])
    recipe_data = {"columns": [{"value": "accuracy", "header": "acc."}], "claims": [], "paper_setup": ""}
    (sentence,) = agreement({"rows": rows, "recipe": recipe_data})
    assert "1 differ as in the paper, 0 the other way, and 2 too little" in sentence
    assert incomparable({"recipe": recipe_data}) == []


def test_what_does_not_compare_says_how_speed_was_measured(finished):
    results = copy.deepcopy(finished[0])
    results["recipe"]["measures"]["speed"] = {}
    protocol = {"input_tokens": 12, "output_tokens": [16, 48]}
    results["timings"] = [{"protocol": protocol, "batches": [4, 1], "timings": [], "oom": []}]
    results["machine"] |= {"cpu": "A CPU", "gpus": [{"name": "A GPU"}]}
    paper = (
        "The paper timed Hugging Face transformers (HF) on GPUs, in Tables 2 and 4 with 12 input and 128 new tokens "
        "at batch 1."
    )
    measured_here = "in bfloat16: 12 input and 48 new tokens, batch 1, 6 runs after 1 warm-up."
    assert f"Speed in the table is measured on A CPU {measured_here} {paper}" in incomparable(results)
    results["device"] = "cuda"
    assert f"Speed in the table is measured on A GPU {measured_here} {paper}" in incomparable(results)
    protocol["output_tokens"] = [128, 512]
    assert any("12 input and 128 new tokens, batch 1, 6" in sentence for sentence in incomparable(results))


def test_what_does_not_compare_says_how_long_rows_were_trained(finished):
    results = copy.deepcopy(finished[0])
    (sentence,) = (text for text in incomparable(results) if "Retraining" in text)
    # One step of two samples of eight tokens.
    assert "random token ids, at most 16 tokens a row, at learning rate 0.0005 in bf16; the paper" in sentence
    once = results["rows"][-2]
    assert once["retrained"]
    results["rows"].append({**once, "made": {"steps": 1, "trainings": 2}})
    results["budget"]["round_steps"] = 3
    (sentence,) = (text for text in incomparable(results) if "Retraining" in text)
    assert "a row, an iterative row at most 48 tokens after every removal, so up to 96, at" in sentence
    once["retrained"] = False
    (sentence,) = (text for text in incomparable(results) if "Retraining" in text)
    assert "random token ids, an iterative row at most 48 tokens" in sentence


def test_a_factor_multiplies_the_error_too():
    def row(value, error):
        values, errors = {"repeated_4grams": value}, {"repeated_4grams": error}
        return {"values": values, "errors": errors, "losses": {}, "intervals": {}}

    # 0.30 against 2 * 0.10: two standard errors of the difference are 0.084, or, with a larger error, 0.12.
    assert difference(row(0.30, 0.03), row(0.10, 0.015), "repeated_4grams", 2.0) == 1
    assert difference(row(0.30, 0.03), row(0.10, 0.026), "repeated_4grams", 2.0) == 0
    assert difference(row(0.30, None), row(0.10, None), "repeated_4grams", 2.0) == 1


def test_a_claim_names_the_text_of_its_perplexity(finished):
    results = copy.deepcopy(finished[0])
    claim = {"text": "It gets worse.", "value": "ppl", "rows": "Blocks", "relation": "higher", "than": "Original"}
    results["recipe"]["claims"] = [{**claim, "factor": 1.0}]
    assert re.search(r"\d comparisons? of PPL novel[,.]", agreement(results)[-1])


def test_columns_without_a_number_of_ours_are_left_out(finished, capsys, monkeypatch):
    results = copy.deepcopy(finished[0])
    accuracy = {"value": "accuracy", "header": "mean acc. %", "paper": None, "where": {}}
    results["recipe"]["columns"] = [*results["recipe"]["columns"], accuracy]
    results["rows"][1]["paper"]["accuracy"] = 50.0
    header, rows = cells(results)
    assert header == ["model", "M params", "PPL", "paper", "GiB, L 8, M 1"]
    assert rows[1][3] == "17.7"
    header, rows = cells(results, paper=False)
    assert header == ["model", "M params", "PPL", "GiB, L 8, M 1"]
    assert {len(row) for row in rows} == {4}
    monkeypatch.setattr(command, "SHOWN", 3)
    options = argparse.Namespace(out="somewhere")
    command._report(options, results)
    shown = capsys.readouterr().out
    assert "PPL" in shown
    assert "GiB" not in shown.split("- ")[0]
    assert "All 4 columns: somewhere/table.md" in shown


def test_a_page_without_standard_errors_does_not_explain_them(finished):
    results = copy.deepcopy(finished[0])
    assert "± is a standard error" in drawn(results)["index.html"].decode()
    results["recipe"]["columns"] = [column for column in results["recipe"]["columns"] if column["value"] != "ppl"]
    assert "± is a standard error" not in drawn(results)["index.html"].decode()


def test_texts_that_nobody_named_are_told_where_they_have_a_column(finished):
    results = copy.deepcopy(finished[0])
    results["left_out"] = ["ptb", "news"]
    assert not any("No text was named" in sentence for sentence in incomparable(results))
    missing = {"value": "ppl:ptb", "header": "PPL ptb", "paper": None, "where": {}}
    results["recipe"]["columns"] = [*results["recipe"]["columns"], missing]
    assert "No text was named for ptb: the table has no column of it." in incomparable(results)


def test_one_of_a_thing_is_no_plural():
    assert [counted(count, "warm-up") for count in (0, 1, 2)] == ["0 warm-ups", "1 warm-up", "2 warm-ups"]


def test_a_wikitext_with_unknown_words_is_marked(finished):
    results = copy.deepcopy(finished[0])
    results["held_out"] = {"wikitext2": {**results["held_out"]["novel"], "has_unk": True}}
    assert cells(results)[0][2] == "PPL (unk variant)"
    assert any("has unk for rare words" in sentence for sentence in incomparable(results))
    results["held_out"] = {"novel": results["held_out"]["wikitext2"]}
    assert cells(results)[0][2] == "PPL"
    assert not any("has unk for rare words" in sentence for sentence in incomparable(results))


def test_perplexities_are_compared_window_by_window():
    def row(nll):
        losses = {"nll": nll, "tokens": [10.0] * len(nll)}
        value = math.exp(sum(nll) / (10 * len(nll)))
        return {"values": {"ppl": value}, "errors": {"ppl": value}, "losses": {"ppl": losses}, "intervals": {}}

    # The windows differ a lot, the two models hardly, but always to the same side.
    a, b = row([10.0, 30.0, 50.0, 20.0]), row([10.4, 30.5, 50.4, 20.5])
    assert (difference(a, b, "ppl"), difference(b, a, "ppl")) == (-1, 1)
    assert difference(a, b, "ppl", factor=0.5) == 1
    assert difference(a, row([10.4, 29.5, 50.4, 19.8]), "ppl") == 0
    endless = {"values": {"ppl": None}, "errors": {}, "losses": {}, "intervals": {}}
    assert (difference(endless, a, "ppl"), difference(a, endless, "ppl")) == (1, -1)
