"""RoPE beyond the original context: each token keeps the frequencies of the length at which it was computed."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyprune import ops
from pyprune.errors import InputError
from pyprune.models import load, to_transformers
from pyprune.runtime.sequence import embed, run_block
from tests.judge import assert_as_near_as, assert_model_no_worse, in_float64

LIMIT = 16
KINDS = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0],
        "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0],
        "factor": 4.0,
    },
}
OLD_CONTEXT = ("llama3", "yarn", "longrope")  # kinds whose parameters name the original context
CHANGING = ["dynamic", "longrope"]


@pytest.fixture
def scaled(random_model):
    """A model with this kind of RoPE, whose frequencies change beyond LIMIT where they change."""

    def make(kind, model_type="llama"):
        rope = {"rope_type": kind, "rope_theta": 12345.0, **KINDS[kind]}
        if kind in OLD_CONTEXT:
            rope["original_max_position_embeddings"] = LIMIT
        positions = LIMIT if kind == "dynamic" else 4 * LIMIT
        model = random_model(model_type, rope_parameters=rope, max_position_embeddings=positions, eos_token_id=None)
        with torch.no_grad():  # softer attention, which does not amplify rounding as that of random weights does
            for layer in model.model.layers:
                layer.self_attn.q_proj.weight.mul_(0.2)
        return model

    return make


def rotation(config, *positions):
    """transformers' cosine and sine `[len(positions), 5]` from a module that has run nothing before."""
    module = LlamaRotaryEmbedding(config)
    tables = [module(torch.zeros(1), torch.tensor([list(some)])) for some in positions]
    return [torch.cat([pair[i][0, :, :5] for pair in tables]) for i in (0, 1)]


@pytest.mark.parametrize("prompt", [1, LIMIT - 1, LIMIT, LIMIT + 1, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_transformers_prompt_and_then_its_single_steps(scaled, kind, prompt):
    model = scaled(kind)
    expected = rotation(model.config, range(prompt), *([p] for p in range(prompt, 48)))
    for ours, theirs in zip(load(model).rope.tables(48, prompt=prompt), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # an angle of 48 has an ulp of 4e-6
        assert torch.equal(ours[: min(prompt, LIMIT)], theirs[: min(prompt, LIMIT)])


@pytest.mark.parametrize("kind", KINDS)
def test_tables_depend_on_the_prompt_only_where_frequencies_change(scaled, kind):
    rope = load(scaled(kind)).rope
    assert rope.limit == (LIMIT if kind in CHANGING else None)
    together, alone = rope.tables(48, prompt=48)[0], rope.tables(48)[0]
    assert torch.equal(together, alone) is (kind not in CHANGING)
    if kind in CHANGING:
        assert not torch.allclose(together[:LIMIT], alone[:LIMIT], atol=1e-2)
        assert torch.equal(rope.tables(LIMIT, prompt=LIMIT)[0], alone[:LIMIT])
        assert torch.equal(rope.tables(3, prompt=40)[0], rope.tables(40, prompt=40)[0][:3])
        assert torch.equal(together[-1], alone[-1])


def test_longrope_has_two_sets_and_dynamic_one_for_every_length(scaled):
    long, dynamic = load(scaled("longrope")).rope, load(scaled("dynamic")).rope
    assert torch.equal(long.tables(20, prompt=20)[0], long.tables(40, prompt=40)[0][:20])
    assert not torch.allclose(dynamic.tables(20, prompt=20)[0], dynamic.tables(40, prompt=40)[0][:20], atol=1e-2)


def our_logits(decoder, ids, prompt):
    cos, sin = decoder.rope.tables(ids.shape[1], prompt=prompt)
    x = embed(decoder, ids)
    for block in decoder.blocks:
        x = run_block(block, x, cos, sin, decoder.eps)
    return ops.norm_head(x, decoder.norm, decoder.eps, decoder.head.weight, decoder.head.bias)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_beyond_the_original_context(scaled, kind, model_type):
    model = scaled(kind, model_type)
    ids = torch.arange(80).view(2, 40) * 17 % 61
    with torch.no_grad():
        expected = model(ids).logits
    decoder = load(model)
    assert_as_near_as(our_logits(decoder, ids, 40), model, lambda model: model(ids).logits)
    if kind in CHANGING:
        assert float((our_logits(decoder, ids, 0) - expected).std()) > 0.05 * float(expected.std())


@pytest.mark.parametrize("prompt", [5, LIMIT, LIMIT + 4])
@pytest.mark.parametrize("kind", CHANGING)
def test_decoding_across_the_original_context(scaled, kind, prompt):
    """The whole sequence at once, each row with its own frequencies, is transformers' generation step by step."""
    model = scaled(kind)
    ids = torch.arange(prompt)[None] * 17 % 61
    options = {"max_new_tokens": 20, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    sequences = []

    def step_by_step(model):
        made = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        sequences.append(made.sequences)
        return torch.stack(made.logits, dim=1)  # which generate rounds to float32

    expected, exact = step_by_step(model), step_by_step(in_float64(scaled(kind))).double()
    assert torch.equal(*sequences)
    decoder = load(scaled(kind))
    ours = our_logits(decoder, sequences[0][:, :-1], prompt)[:, prompt - 1 :]
    assert_model_no_worse(ours, expected, exact)
    if kind == "dynamic" or prompt <= LIMIT:  # else longrope has one set throughout
        together = our_logits(decoder, sequences[0][:, :-1], prompt + 19)[:, prompt - 1 :]
        assert float((together - expected).std()) > 0.05 * float(expected.std())


@pytest.mark.parametrize("kind", CHANGING)
def test_frequencies_beyond_the_limit_survive_saving_and_moving(scaled, tmp_path, kind):
    decoder = load(scaled(kind))
    decoder.save(tmp_path / "saved")
    again = load(tmp_path / "saved").to(dtype=torch.bfloat16)
    for ours, theirs in zip(decoder.rope.tables(40, prompt=30), again.rope.tables(40, prompt=30), strict=True):
        assert torch.equal(ours, theirs)
    meta = decoder.rope.to("meta")
    assert meta.inv_freq.is_meta
    assert meta.long is None or meta.long.is_meta


def test_the_context_of_dynamic_scaling_is_factor_times_the_original(scaled):
    assert load(scaled("dynamic")).max_positions == 3 * LIMIT
    assert load(scaled("longrope")).max_positions == 4 * LIMIT


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dynamic", {"factor": 0.0}, r"factor 0\.0; a positive number"),
        ("dynamic", {"factor": -1.0}, r"factor -1\.0; a positive number"),
        ("longrope", {"long_factor": [1.0, 2.0]}, "rope_parameters .*longrope"),
        ("longrope", {"long_factor": [1.0, 2.0, 0.0, 3.0, 4.0]}, "not all positive"),
        ("longrope", {"long_factor": [1.0, 2.0, -1.0, 3.0, 4.0]}, "not all positive"),
    ],
)
def test_frequencies_that_fail_only_beyond_the_limit_are_refused(scaled, tmp_path, kind, changes, message):
    scaled(kind).save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "theirs")


def test_a_model_made_by_us_rotates_long_prompts_as_the_original(scaled):
    ids = torch.arange(40)[None]
    for kind in CHANGING:
        with torch.no_grad():
            assert torch.equal(to_transformers(load(scaled(kind)))(ids).logits, scaled(kind)(ids).logits)
