"""RoPE over a model's full context, and sliding windows: the tokens that Hugging Face generates."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from pyprune import Engine, load
from tests import seeds
from tests.judge import assert_model_no_worse_in_any_order, in_float64, reordered

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}
LIMIT = 64
KINDS = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0,
        "original_max_position_embeddings": LIMIT,
    },
}  # fmt: skip


def random_model(config: LlamaConfig | MistralConfig) -> LlamaForCausalLM | MistralForCausalLM:
    """A model with large random weights, so that positions matter and greedy tokens do not repeat for long."""
    kind = MistralForCausalLM if isinstance(config, MistralConfig) else LlamaForCausalLM
    config._attn_implementation = "eager"
    model, generator = kind(config), seeds.generator(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1)
    return model.eval()


def llama(kind: str) -> LlamaForCausalLM:
    """A new model each time: that of transformers remembers the longest sequence it has seen."""
    sizes = {**SIZES, "max_position_embeddings": 4 * LIMIT} if kind == "longrope" else SIZES
    return random_model(LlamaConfig(**sizes, rope_parameters={"rope_type": kind, "rope_theta": 1e3, **KINDS[kind]}))


def ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 61, (batch, tokens), generator=seeds.generator(tokens))


def theirs(model: torch.nn.Module, prompt: torch.Tensor, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens `[1, new]` and the logits that they were chosen from, `[new, V]`."""
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return out.sequences[:, prompt.shape[1] :], torch.cat(out.logits)


def check(engine: Engine, model: torch.nn.Module, prompt: torch.Tensor, new: int) -> None:
    exact = in_float64(model)
    tokens, logits = theirs(model, prompt, new)
    sure, exact_logits = theirs(exact, prompt, new)  # which generate rounds to float32
    assert torch.equal(sure, tokens), "two tokens are within rounding of each other: another prompt is needed"
    assert torch.equal(engine.generate(prompt, max_new_tokens=new), tokens)
    ours = [engine.prefill(prompt)] + [engine.decode(token) for token in tokens.T[:-1]]

    def plain(order: int) -> torch.Tensor:
        return theirs(reordered(model, order), prompt, new)[1] if order else logits

    assert_model_no_worse_in_any_order(torch.cat(ours), plain, exact_logits.double())


# 24 new ones: below, across, at, just beyond, far beyond.
AROUND = [10, 60, 64, 65, 90]
# The frequencies of these two are others beyond the limit; those of the rest are the same everywhere.
CHANGING = ["dynamic", "longrope"]


@pytest.mark.parametrize(
    ("kind", "tokens"), [(kind, n) for kind in KINDS for n in (AROUND if kind in CHANGING else (10, 60, 90))]
)
def test_generation_equals_hugging_face_across_the_original_context(kind: str, tokens: int):
    check(Engine(load(llama(kind)), max_len=120), llama(kind), ids(1, tokens), 24)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("chunk", [9, 32, 512])
def test_a_ragged_batch_across_the_limit_is_computed_as_if_each_were_alone(kind: str, chunk: int):
    lengths = [90, 10, 64, 65, 90]
    prompt, mask = torch.zeros(5, 90, dtype=torch.long), torch.zeros(5, 90)
    for b, length in enumerate(lengths):
        prompt[b, 90 - length :], mask[b, 90 - length :] = ids(1, length), 1
    out = Engine(load(llama(kind)), max_batch=5, max_len=120, prefill_chunk=chunk).generate(
        prompt, mask, max_new_tokens=30
    )
    for b, length in enumerate(lengths):
        assert torch.equal(out[b : b + 1], theirs(llama(kind), ids(1, length), 30)[0])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_room_beyond_the_limit_changes_nothing_below_it(kind: str):
    decoder, prompt = load(llama(kind)), ids(2, 30)
    long, short = (Engine(decoder, max_batch=2, max_len=rows) for rows in (200, LIMIT))
    assert torch.equal(long.prefill(prompt), short.prefill(prompt))
    for token in ids(LIMIT - 30, 2):
        assert torch.equal(long.decode(token), short.decode(token))


def test_the_frequencies_do_change_at_the_limit():
    """So that the tests above can fail."""
    for kind in ("dynamic", "longrope"):
        rope = load(llama(kind)).rope
        assert rope.limit == LIMIT
        beyond = rope.tables(LIMIT + 1, prompt=LIMIT + 1)[0][LIMIT - 1]
        assert not torch.allclose(beyond, rope.tables(LIMIT + 1)[0][LIMIT - 1], atol=1e-3)


@pytest.mark.parametrize(
    ("window", "tokens", "chunk"),
    [(window, 100, chunk) for window in (2, 7, 20, 64, 500) for chunk in (512, 30, 8)]
    + [(window, tokens, 512) for window in (2, 7, 20) for tokens in (5, 16)],  # the new ones go beyond the window
)
def test_windows_give_hugging_face_tokens(window: int, tokens: int, chunk: int):
    config = MistralConfig(**{**SIZES, "max_position_embeddings": 512}, sliding_window=window)
    model = random_model(config)
    check(Engine(load(model), max_len=130, prefill_chunk=chunk), model, ids(1, tokens), 20)
