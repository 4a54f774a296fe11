"""The lm-eval model `pyprune`: the answers of lm-eval's own `hf` model, request by request."""

from __future__ import annotations

import copy
import random
import sys
from typing import Any

import pytest
import torch

import pyprune
from pyprune.errors import InputError
from tests import seeds
from tests.evaluation.conftest import SENTENCE, SIZES, byte_level_tokenizer

pytest.importorskip("lm_eval")

WINDOW = 48  # tokens that both models read at most
CASES = {"as the tokenizer is": None, "BOS": True, "no BOS": False}


@pytest.fixture(scope="module")
def decoder():
    return pyprune.load(SIZES)


def pair(decoder, add_bos_token: bool | None = None, dtype: torch.dtype = torch.float32, tokenizer: Any = None):
    """Our model and lm-eval's, of the same weights. tokenizer: where one lies; else both are given the same object."""
    from lm_eval.models.huggingface import HFLM

    from pyprune.lm_eval import PyPruneLM

    low = decoder.to(dtype)
    tokenizer = byte_level_tokenizer() if tokenizer is None else str(tokenizer)
    options = {"max_length": WINDOW, "add_bos_token": add_bos_token}
    theirs = HFLM(
        pretrained=pyprune.to_transformers(low), tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=3,
        softmax_dtype=torch.float32, **options,
    )  # fmt: skip
    return PyPruneLM(low, tokenizer=tokenizer, tokens=90, **options), theirs


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(SENTENCE.split()) for _ in range(count))


def requests(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, place) for place, argument in enumerate(arguments)]


def choices() -> list[tuple[str, str]]:
    """Contexts with several endings, no context, a context that ends in a space, and more than the window holds."""
    draw = random.Random(seeds.seed())
    pairs = []
    for _ in range(5):
        context = f"Question: {words(draw, draw.randrange(1, 6))}\nAnswer:"
        pairs += [(context, " " + words(draw, draw.randrange(1, 4))) for _ in range(draw.randrange(1, 5))]
    yes_or_no = [("is it so? ", " yes"), ("is it so? ", " no"), ("is it so?", " yes")]
    empty = [("", words(draw, 3)), ("", "<s> the"), ("", "a")]
    return [*pairs, *yes_or_no, *empty, pairs[0], (words(draw, 60), " " + words(draw, 5)), (words(draw, 40), "a dog")]


@pytest.mark.parametrize("add_bos_token", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("by_name", [False, True], ids=["tokenizer given", "tokenizer by name"])
def test_log_likelihoods_are_those_of_hf(decoder, model_directory, add_bos_token: bool | None, by_name: bool):
    ours, theirs = pair(decoder, add_bos_token, tokenizer=model_directory if by_name else None)
    assert (ours.tok_encode("a")[0] == 0) == (by_name and add_bos_token is True)
    asked = requests("loglikelihood", choices())
    got, expected = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], rel=1e-5, abs=1e-4)


def test_greedy_endings_are_found_as_hf_finds_them(decoder):
    ours, theirs = pair(decoder)
    context = "the quick brown"
    text = ours.generate_until(requests("generate_until", [(context, {"until": [], "max_gen_toks": 6})]))[0]
    whole = ours.tok_encode(context + text)
    assert whole[: len(ours.tok_encode(context))] == ours.tok_encode(context)
    asked = requests("loglikelihood", [(context, text), (context, text[:-1] + "%"), (context, " fox")])
    got, expected = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


def test_in_bfloat16_ours_are_as_near_to_float32_as_hf(decoder):
    """Different roundings give different last digits; a choice may differ where two endings are that near."""
    ours, theirs = pair(decoder, dtype=torch.bfloat16)
    exact, _ = pair(decoder.to(torch.bfloat16).to(torch.float32))
    asked = requests("loglikelihood", choices())
    got, expected, reference = (
        torch.tensor([value for value, _ in model.loglikelihood(asked, disable_tqdm=True)], dtype=torch.float64)
        for model in (ours, theirs, exact)
    )
    assert float((got - reference).abs().max()) <= 2 * float((expected - reference).abs().max()) + 1e-3


def test_rolling_log_likelihoods_are_those_of_hf(decoder):
    ours, theirs = pair(decoder)
    draw = random.Random(seeds.seed())
    asked = requests("loglikelihood_rolling", [(words(draw, count),) for count in (1, 12, 14, 15, 60)])
    got, expected = (model.loglikelihood_rolling(asked, disable_tqdm=True) for model in (ours, theirs))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_texts_are_those_of_hf(decoder):
    ours, theirs = pair(decoder)
    draw = random.Random(seeds.seed())
    asked = requests(
        "generate_until",
        [
            (words(draw, 3), {"until": ["\n"], "max_gen_toks": 12}),
            (words(draw, 60), {"until": ["e", "the"], "max_gen_toks": 12}),
            (words(draw, 5), {"until": ["e", "the"], "max_gen_toks": 12}),
            (words(draw, 4), {"until": [], "max_gen_toks": 7, "do_sample": False}),
        ],
    )
    got, expected = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert got == expected
    assert any(got)


def test_a_stop_string_ends_the_generation(decoder):
    ours, _ = pair(decoder)
    whole = ours.generate_until(requests("generate_until", [("the dog", {"until": [], "max_gen_toks": 20})]))[0]
    stop = whole[len(whole) // 2 :][:2]
    cut = ours.generate_until(requests("generate_until", [("the dog", {"until": [stop], "max_gen_toks": 20})]))[0]
    assert cut == whole.split(stop)[0]


def test_skipped_blocks_are_left_out(decoder):
    from pyprune.lm_eval import PyPruneLM

    asked = requests("loglikelihood", choices()[:6])
    tokenizer = byte_level_tokenizer()
    pruned = pyprune.apply(decoder, pyprune.Pruning(model=decoder.name, blocks=(0, 2)))
    expected = PyPruneLM(pruned, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True)
    full = PyPruneLM(decoder, tokenizer=tokenizer).loglikelihood(asked, disable_tqdm=True)
    for skip in ([0, 2], "0,2", "[0,2]", "0+2", pruned.pruning):
        got = PyPruneLM(decoder, tokenizer=tokenizer, skip=skip).loglikelihood(asked, disable_tqdm=True)
        assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], rel=1e-6)
    assert expected != full


@pytest.mark.parametrize("skip", ["skip=0,2", "skip=[0,2]"])
def test_lm_eval_makes_it_from_an_argument_string(model_directory, skip: str):
    import lm_eval.api.registry

    made = lm_eval.api.registry.get_model("pyprune")
    model = made.create_from_arg_string(f"pretrained={model_directory},{skip},max_length=30", {"batch_size": 1})
    assert (model.skip, model.max_length) == ([0, 2], 30)
    assert made.create_from_arg_string(f"skip=1,pretrained={model_directory}").skip == [1]
    assert made.create_from_arg_string(f"pretrained={model_directory}").skip is None


def test_the_default_device_of_lm_evals_command_line_is_the_cpu_without_cuda(model_directory, monkeypatch):
    from pyprune.lm_eval import PyPruneLM

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {"batch_size": 1, "device": "cuda:0"}
    made = [
        PyPruneLM.create_from_arg_obj({"pretrained": model_directory, "skip": [1]}, settings),
        PyPruneLM.create_from_arg_string(f"pretrained={model_directory},skip=1", settings),
        PyPruneLM.create_from_arg_string(f"pretrained={model_directory}", settings),
    ]
    assert [model.decoder.device.type for model in made] == ["cpu"] * 3
    assert [model.skip for model in made] == [[1], [1], None]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "pretrained: none given"),
        ({"pretrained": SIZES}, "has no tokenizer"),
        ({"pretrained": SIZES, "layers": 3}, "layers=3: not an argument"),
        ({"pretrained": SIZES, "skip": "first"}, "skip=first: block indices"),
        ({"pretrained": SIZES, "skip": "7"}, "0 to 2"),
        ({"pretrained": "no/such/model"}, "no/such/model"),
    ],
)
def test_bad_arguments_are_named(arguments, named: str):
    from pyprune.lm_eval import PyPruneLM

    with pytest.raises(InputError, match=named):
        PyPruneLM(**arguments)


def test_requests_that_hold_nothing_or_too_much_are_refused(decoder):
    ours, _ = pair(decoder)
    with pytest.raises(InputError, match=f"1 to {WINDOW} "):
        ours.loglikelihood(requests("loglikelihood", [("a", " the" * (WINDOW + 1))]), disable_tqdm=True)
    with pytest.raises(InputError, match="and 0 to score"):
        ours.loglikelihood(requests("loglikelihood", [("a", "")]), disable_tqdm=True)
    with pytest.raises(InputError, match="num_beams=4"):
        ours.generate_until(requests("generate_until", [("a", {"until": [], "max_gen_toks": 4, "num_beams": 4})]))
    with pytest.raises(InputError, match="max_gen_toks: 48"):
        ours.generate_until(requests("generate_until", [("a", {"until": [], "max_gen_toks": WINDOW})]))


def test_a_tokenizer_that_does_not_fit_is_refused():
    from pyprune.lm_eval import PyPruneLM

    with pytest.raises(InputError, match="290 tokens; the model knows 131"):
        PyPruneLM(
            "shape:hidden=24,blocks=1,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=131", tokenizer=byte_level_tokenizer()
        )


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch, capsys):
    from tests.cli.command_line import run

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith("pyprune.lm_eval")]:
        monkeypatch.delitem(sys.modules, name)
    for command in (["lm-eval", "ls", "tasks"], ["eval", "shape:tiny", "--tasks", "piqa"]):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert err == "pyprune: lm-eval is not installed, which tasks need: pip install pyprune[eval]\n"


def test_the_command_hands_everything_to_lm_eval(monkeypatch, capsys):
    import lm_eval.__main__

    from tests.cli.command_line import run

    seen = []
    monkeypatch.setattr(sys, "argv", ["pyprune"])
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append(sys.argv))
    words = ["--model", "pyprune", "-a", "pretrained=x,skip=10,11,dtype=float32", "--tasks", "piqa", "--limit", "3"]
    assert run(capsys, "lm-eval", *words)[0] == 0
    assert seen == [["lm-eval", *words[:3], "pretrained=x,skip=[10,11],dtype=float32", *words[4:]]]
    code, out, _ = run(capsys, "lm-eval", "--help")
    assert code == 0
    assert "pyprune lm-eval ls tasks" in out
    assert len(seen) == 1


def test_lm_eval_reads_the_blocks_that_the_command_puts_in_brackets():
    from lm_eval._cli.utils import key_val_to_dict

    assert key_val_to_dict("pretrained=x,skip=[10,11],dtype=float32")["skip"] == [10, 11]
