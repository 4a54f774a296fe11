"""Recipes and command lines that are refused."""

from __future__ import annotations

import importlib.util

import numpy
import pytest

from pyprune.errors import InputError
from pyprune.study.recipes import run as module
from pyprune.study.recipes.run import recipe
from tests.cli.command_line import run as command_line
from tests.study.recipes.small import SMALL, iterative


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Small"\n', "", "title is missing; a text is expected"),
        ('title = "Small"', "title = 3", "title 3: a text is expected"),
        ('title = "Small"', 'title = "Small"\ncolour = "red"', "colour 'red': no such key; "),
        ('method = "flap"', 'method = "magic"', "models 3, prune: method 'magic': one of depth, wanda-sp"),
        ('amount = "25%" }\ngroup', 'amount = "125%" }\ngroup', "amount '125%': a share of the parameters (20%) or"),
        ('amount = "25%" }\ngroup', 'amount = "2" }\ngroup', "amount 2: a share of the parameters is expected for"),
        ('method = "depth", amount = "25%"', 'method = "depth", criterion = "luck", amount = "25%"', "'luck'"),
        ('method = "flap", ', 'method = "flap", unit = "mha", ', "unit 'mha': does not belong to method flap"),
        ("retrain = true", 'repair = "magic"', "models 4: repair 'magic': repair: method 'magic': auto, mean-update"),
        ("retrain = true", 'repair = "tail+linear"', "after a + only refit-all, refit-all-o, blockwise, tail are"),
        ("retrain = true", 'retrain = "yes"', "models 4: retrain 'yes': true or false is expected"),
        ("samples = 2", "samples = 0", "budget.quick: samples 0: a whole number from 1 is expected"),
        ("[budget.quick]", "[budget.slow]", "budget 'slow': quick or paper is expected"),
        ("batch = 2", "batch = 3", "batch 3: a multiple of micro_batch, 2, is expected"),
        ('value = "memory:8x1"', 'value = "memory:8"', "columns 3: value 'memory:8': one of parameters"),
        ('value = "parameters"', 'value = "accuracy"', "value 'accuracy': is not measured; tasks under measures"),
        ('name = "FLAP 25%"', 'name = "FLAP {much}"', "models 3: {much}: is not a key of each"),
        ('method = "flap", amount = "25%"', 'method = "flap"', "prune: amount is missing; a share of the parameters"),
        ('kind = "lines"', 'kind = "cake"', "figure: kind 'cake': one of none, lines"),
        ('kind = "lines"', 'kind = "quality-speed"', "kind 'quality-speed': needs speed under measures"),
        ('relation = "lower"', 'relation = "nicer"', "claims 1: relation 'nicer': one of lower, higher is expected"),
        ('name = "FLAP 25%"', 'name = "Original"', "models: 'Original' twice"),
        ('ratio = ["25%", "45%"]', 'ratio = "25%"', "each {'ratio': '25%'}: a list of one or more values"),
        ('"quality:ppl_wikitext2"', '"quality:beauty"', "paper 'quality:beauty': model, ratio"),
        ('"quality:ppl_wikitext2"', '"none:beauty"', "paper 'none:beauty': no file none.csv"),
        ('title = "Small"', "title = ", "not TOML"),
        ('value = "ppl"', 'value = "ppl:novell"', "columns: value 'ppl:novell': novel, other, wikitext2, ptb are the"),
        ('value = "memory:8x1"', 'value = "memory:8x2"', "'memory:8x2': output_tokens 8 and batches 1 are measured"),
        ('y = ["ppl"]', 'y = ["ppl", "accuracy"]', "figure: y: value 'accuracy': is not measured; tasks under"),
        ('y = ["ppl"]', 'y = ["ppl:none"]', "figure: y: value 'ppl:none': novel, other"),
        ('value = "memory:8x1"\nrows', 'value = "speedup"\nrows', "claims 1: value 'speedup': is not measured; speed"),
        ('rows = "Blocks|FLAP"', 'rows = "Bricks|Flap"', "claims 1: rows 'Bricks|Flap': in no row's name"),
        ('than = "Original"', 'than = "original"', "claims 1: than 'original': in no row's name"),
        ('amount = "25%" }\ngroup', 'amount = "25%" }\nrepair = "scale"\ngroup', "FLAP 25%: repair: method scale: is"),
        ("retrain = true", 'repair = "stat"', "Trained 25%: repair: method stat: is for removed heads and neurons"),
    ],
)  # fmt: skip
def test_a_bad_recipe_names_key_value_and_what_is_expected(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(module, "load", None)
    assert old in SMALL
    file = tmp_path / "bad.toml"
    file.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        recipe(file, "shape:tiny")
    assert message in str(error.value)
    assert "bad" in str(error.value)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ('repair = "linear"', "iterative 1: repair 'linear': not for search iterative, which only retrains"),
        ("distill = true", "iterative 1: distill True: not for search iterative, which only retrains"),
        ("perplexity = false", "'Iterative 1' has search iterative; perplexity is expected"),
    ],
)
def test_what_an_iterative_pruning_does_not_do_is_refused(tmp_path, monkeypatch, new, message):
    monkeypatch.setattr(module, "load", None)
    file = iterative(tmp_path)
    old = "perplexity = true" if "perplexity" in new else "retrain = true"
    text = file.read_text().replace(old, new if old == "perplexity = true" else f"{old}\n{new}")
    text = text.replace('[[columns]]\nvalue = "ppl"\npaper = "quality:ppl_wikitext2"\n', "").replace('y = ["ppl"]', "")
    file.write_text(text.replace('kind = "lines"', 'kind = "none"'))
    with pytest.raises(InputError) as error:
        recipe(file, "shape:tiny")
    assert message in str(error.value).replace("models 2: ", "iterative 1: ")


def test_a_repair_with_too_few_windows_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load", None)
    file = tmp_path / "few.toml"
    text = SMALL.replace("[budget.quick]\n", "[budget.quick]\nrepair_samples = 3\n")
    file.write_text(text.replace("retrain = true", 'repair = "refit"'))
    with pytest.raises(
        InputError, match="few, Trained 25%: repair_samples of budget quick: repair: 3 samples: at least"
    ):
        recipe(file, "shape:tiny")


def test_a_repair_with_nothing_before_it_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "perplexity_of", None)
    file = tmp_path / "first.toml"
    text = SMALL.replace("retrain = true", 'repair = "scale"')
    old = '"25%" }\nrepair'
    assert old in text
    file.write_text(text.replace(old, '"25%", criterion = "first" }\nrepair'))
    with pytest.raises(InputError, match=r"recipe first, Trained 25%: repair: method scale: .* begins at block 0"):
        recipe(file, "shape:tiny")


def test_a_recipe_that_trains_is_refused_under_torchrun(small, monkeypatch):
    monkeypatch.setattr(module, "load", None)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="recipe: trains in one process; torchrun has started several"):
        recipe(small, "shape:tiny")


@pytest.mark.parametrize("cell", ["good", "nan"])
def test_a_word_for_a_number_of_the_paper_names_file_column_and_row(tmp_path, cell):
    file = tmp_path / "own.toml"
    file.write_text(SMALL.replace("quality:ppl_wikitext2", "numbers:ppl"))
    (tmp_path / "numbers.csv").write_text(f"method,ppl\ndepth,17.5\nflap,{cell}\n")
    with pytest.raises(InputError, match=f"own: paper 'numbers:ppl': '{cell}' for 'FLAP 25%' in numbers.csv; a number"):
        recipe(file, "shape:tiny")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table3", "shape:tiny"], "recipe 'table3': figure1, "),
        (["table2"], "recipe: MODEL is missing"),
        ([], "recipe: NAME is missing"),
        (["table2", "shape:tiny"], "shape:tiny: has no tokenizer, which tasks of recipe table2 need"),
        (
            ["SMALL", "shape:tiny", "--text", "poem=a.txt"],
            "--text poem=...: calibration, training, ",
        ),
        (["SMALL", "shape:tiny", "--text", "poem"], "'poem': ROLE=TEXT"),
        (
            ["SMALL", "shape:tiny", "--text", "training=a.txt", "--text", "instructions=b.json"],
            "--text training=a.txt and instructions=b.json: one of them is expected",
        ),
        (["SMALL", "shape:tiny", "--resume"], "--resume: finished work is kept beside --out"),
        (["SMALL", "shape:tiny", "--budget", "rich"], "--budget: invalid choice: 'rich'"),
        (["SMALL", "shape:tiny,blocks=1"], "recipe small, Blocks 25%: "),
        (["SMALL", "shape:tiny", "--text", "calibration=missing.txt"], "missing.txt: No such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, small, words, message):
    words = [small if word == "SMALL" else word for word in words]
    code, out, err = command_line(capsys, "recipe", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "retrain: needs peft"),
        (["--text", "instructions=missing.json"], "missing.json: No such file"),
        (["--text", "instructions=POEM"], "poem.json line 1: not JSON"),
    ],
)
def test_what_a_training_lacks_is_told_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, small, words, message):
    monkeypatch.setattr(module, "load", None)
    if not words:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    poem = tmp_path / "poem.json"
    poem.write_text("Roses are red")
    words = [word.replace("POEM", str(poem)) for word in words]
    code, _, err = command_line(capsys, "recipe", small, "shape:tiny", *words)
    assert code == 2
    assert message in err


def test_sequences_that_a_model_has_no_positions_for_are_refused(tmp_path):
    file = tmp_path / "long.toml"
    file.write_text(SMALL.replace("cutoff = 8", "cutoff = 2049"))
    with pytest.raises(InputError, match="a context of 2048 tokens; recipe long with budget quick needs 2049"):
        recipe(file, "shape:tiny")
    file.write_text(SMALL.replace("cutoff = 8", "cutoff = 2049").replace("retrain = true\n", ""))
    assert recipe(file, "shape:tiny", announce=lambda planned: False) is None


def test_a_training_text_that_is_too_short_is_refused_before_anything_is_made(small, tmp_path, monkeypatch):
    def never(*_: object, **__: object):
        raise AssertionError("made")

    monkeypatch.setattr(module, "perplexity_of", never)
    monkeypatch.setattr(module.Models, "pruning", never)
    for count, message in (
        (7, "7 tokens; at least one window of 8"),
        (8 * 16 + 7, "ids.npy has 16 samples of at most 8"),
    ):
        numpy.save(tmp_path / "ids.npy", numpy.arange(count))
        with pytest.raises(InputError, match=message):
            recipe(small, "shape:tiny", texts={"training": str(tmp_path / "ids.npy")})
