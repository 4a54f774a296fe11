"""`pyprune.accelerate` against the same transformers model untouched: logits, tokens, and what stays what it was."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
    pipeline,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import pyprune
from pyprune import InputError, Pruning, ops
from pyprune.runtime import attention
from tests import seeds
from tests.judge import assert_as_near_as, assert_no_worse_than_torch

VOCAB = 131
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 71, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "initializer_range": 0.2, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 8}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, tied head": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral with a window": (MistralForCausalLM, MistralConfig, {"sliding_window": 7}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"hidden_size": 60}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}
OPERATORS = ("norm_qkv_rope", "decode_attention", "linear_residual", "norm_gate_up", "padded_linear")


def small_model(family: str = "qwen3", **changes: object) -> nn.Module:
    """A random model in eval mode whose norms and biases matter."""
    kind, config, own = FAMILIES[family]
    torch.manual_seed(seeds.seed())
    model = kind(config(**{**SIZES, **own, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


def pair(family: str = "qwen3", **changes: object) -> tuple[nn.Module, nn.Module]:
    """The same model twice: accelerated, and as transformers makes it."""
    model = small_model(family, **changes)
    return pyprune.accelerate(copy.deepcopy(model)), model


def ids(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (batch, tokens), generator=seeds.generator(seed))


def padded(batch: int, tokens: int, side: str) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths and their mask; the first fills its row."""
    prompt, mask = ids(batch, tokens), torch.ones(batch, tokens, dtype=torch.long)
    for b in range(1, batch):
        mask[b, : 2 * b] = 0
    mask = mask if side == "left" else mask.flip(1)
    return prompt * mask, mask


def run(model: nn.Module, tokens: int = 5, batch: int = 2, **options: object) -> Tensor:
    with torch.no_grad():
        return model(ids(batch, tokens), **options).logits


def check(ours: nn.Module, theirs: nn.Module, tokens: int = 5, **options: object) -> None:
    """The logits of `ours` are as near to float64 as those of `theirs`."""
    assert_as_near_as(run(ours, tokens, **options), theirs, lambda model: run(model, tokens, **options))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each operator was called."""
    counted = dict.fromkeys(OPERATORS, 0)

    def counting(name: str):
        operator = getattr(ops, name)

        def call(*args: object, **options: object) -> Tensor:
            counted[name] += 1
            return operator(*args, **options)

        return call

    for name in OPERATORS:
        monkeypatch.setattr(ops, name, counting(name))
    return counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_as_exact_as_transformers(family: str, attention: str, dtype: torch.dtype):
    model = small_model(family).to(dtype)
    model.set_attn_implementation(attention)
    prompt = ids(2, 11)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(prompt).logits
        theirs = model(prompt).logits
        ours = pyprune.accelerate(model)(prompt).logits
    assert ours.dtype == theirs.dtype == dtype
    assert_no_worse_than_torch(ours, theirs, exact, dtype=dtype)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_decoding_agrees(family: str, side: str, cache: str):
    ours, theirs = pair(family)
    prompt, mask = (ids(3, 9), torch.ones(3, 9, dtype=torch.long)) if side == "none" else padded(3, 9, side)
    tokens = ids(3, 12, seed=1)
    exact = copy.deepcopy(theirs).double()
    length = 32 if cache == "static" else 0
    caches = [StaticCache(config=theirs.config, max_cache_len=length) if length else None for _ in range(3)]
    one_by_one = [tokens[:, t : t + 1] for t in range(12)]
    steps = [prompt, *one_by_one[:6], tokens[:, 6:9], *one_by_one[9:11]]
    with torch.no_grad():
        for step in steps:
            if step is not prompt:
                mask = torch.cat((mask, torch.ones_like(step)), dim=1)
            places = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            results = []
            for i, model in enumerate((ours, theirs, exact)):
                given = {"attention_mask": mask, "position_ids": places, "past_key_values": caches[i]}
                out = model(step, **given, use_cache=True)
                caches[i] = out.past_key_values
                results.append(out.logits)
            assert_no_worse_than_torch(*results)


GENERATION = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams, static cache": {"num_beams": 2, "cache_implementation": "static"},
    "sampling": {"do_sample": True, "top_k": 20, "num_return_sequences": 2},
    "repetition penalty": {"repetition_penalty": 1.3},
    "hidden states": {"output_hidden_states": True, "return_dict_in_generate": True},
}


def generate(model: nn.Module, prompt: Tensor, mask: Tensor, **options: object) -> Tensor:
    torch.manual_seed(seeds.seed(5))
    options = {"max_new_tokens": 18, "do_sample": False, **options}
    out = model.generate(prompt, attention_mask=mask, **options)
    return out if isinstance(out, Tensor) else out.sequences


def generations() -> list:
    """Every family, side and way to generate; those that `--full` alone runs are marked.

    The others: of two families, the window and the norms of queries and keys among them, every way; of each other one
    two or three, so that each way has two such families, and both sides.
    """
    cases = []
    for i, family in enumerate(FAMILIES):
        for j, way in enumerate(GENERATION):
            for side in ("left", "right"):
                always = family in ("mistral with a window", "qwen3") or (i + j) % 3 == 0
                chosen = always and side == ("left", "right")[(i + j // 3) % 2]
                cases.append(pytest.param(family, side, way, marks=() if chosen else pytest.mark.full))
    return cases


@pytest.mark.parametrize(("family", "side", "way"), generations())
def test_generate_gives_the_same_tokens(family: str, side: str, way: str):
    ours, theirs = pair(family)
    prompt, mask = padded(3, 9, side)
    options = {"max_new_tokens": 12, **GENERATION[way]}
    assert torch.equal(generate(ours, prompt, mask, **options), generate(theirs, prompt, mask, **options))


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 4}, {"assistant": True}], ids=["lookup", "assistant"])
@pytest.mark.parametrize("family", ["llama", "mistral with a window", "qwen3"])
def test_assisted_generation_crops_the_cache_and_gives_the_same_tokens(family: str, options: dict):
    ours, theirs = pair(family)
    prompt = ids(1, 5).repeat(1, 3)
    expected = generate(theirs, prompt, torch.ones_like(prompt), max_new_tokens=30)
    if "assistant" in options:  # nearly the model, so that it is often right and sometimes not
        assistant = copy.deepcopy(theirs)
        with torch.no_grad():
            for weight in assistant.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.01)
        options = {"assistant_model": pyprune.accelerate(assistant)}
    assert torch.equal(generate(ours, prompt, torch.ones_like(prompt), max_new_tokens=30, **options), expected)


@pytest.mark.parametrize("any_tokens", [True, False])
def test_operators_do_the_work(calls, monkeypatch, any_tokens: bool):
    monkeypatch.setattr(attention, "ANY_TOKENS", any_tokens)
    ours, _ = pair("llama")
    prompt, mask = padded(3, 9, "left")
    generate(ours, prompt, mask, max_new_tokens=5)
    # Padding in the prompt sees nothing, so attention is transformers' own there; 4 steps follow.
    assert calls == {
        "norm_qkv_rope": 15, "decode_attention": 12, "linear_residual": 30, "norm_gate_up": 15, "padded_linear": 5,
    }  # fmt: skip
    with torch.no_grad():
        for tokens, attended in ((16, 15), (17, 18 if any_tokens else 15)):  # few tokens, and one more
            ours(ids(1, tokens))
            assert calls["decode_attention"] == attended


def test_a_bare_model_and_a_classifier_are_accepted(calls):
    torch.manual_seed(seeds.seed())
    for kind in (LlamaModel, LlamaForSequenceClassification):
        model = kind(LlamaConfig(**{**SIZES, "head_dim": 8})).eval()
        plain = copy.deepcopy(model)
        with torch.no_grad():
            ours = pyprune.accelerate(model)(ids(2, 7))[0]
        assert_as_near_as(ours, plain, lambda model: model(ids(2, 7))[0])
    assert calls["norm_gate_up"] == 6


def test_pruned_decoders_of_uneven_blocks_run_too(tiny, calls):
    model = pyprune.to_transformers(pyprune.apply(tiny, Pruning(blocks=[1], mha=[2], ffn=[4], kv_groups={0: [1]})))
    prompt = ids(2, 6)
    expected = generate(model, prompt, torch.ones_like(prompt))
    assert torch.equal(generate(pyprune.accelerate(model), prompt, torch.ones_like(prompt)), expected)
    assert calls["norm_qkv_rope"] == 3 * 18
    assert calls["norm_gate_up"] == 3 * 18


def test_classes_names_and_parameters_stay_what_they_were():
    ours, theirs = pair("llama")
    layer = ours.model.layers[0]
    assert type(layer) is not LlamaDecoderLayer
    assert isinstance(layer, LlamaDecoderLayer)
    assert repr(ours) == repr(theirs)
    assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in theirs.modules()]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_weights_are_neither_copied_nor_changed():
    model = small_model()
    before = [(p.data_ptr(), p._version) for p in model.parameters()]
    generate(pyprune.accelerate(model), ids(1, 4), torch.ones(1, 4, dtype=torch.long))
    assert [(p.data_ptr(), p._version) for p in model.parameters()] == before


@pytest.mark.parametrize("family", FAMILIES)
def test_restore_gives_back_classes_and_bits(family: str):
    model = small_model(family)
    classes = [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    prompt = ids(2, 9)
    with torch.no_grad():
        before = model(prompt).logits
        pyprune.accelerate(model)(prompt)
        assert pyprune.restore(model) is model
        after = model(prompt).logits
    assert [type(m) for m in model.modules()] == classes
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(before, after)
    assert pyprune.restore(model) is model


def test_accelerating_twice_is_accelerating_once():
    model = small_model()
    assert pyprune.accelerate(model) is model
    classes = [type(m) for m in model.modules()]
    assert [type(m) for m in pyprune.accelerate(model).modules()] == classes
    assert type(pyprune.restore(model).model.layers[0]) is type(small_model().model.layers[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_accelerated_and_on_its_own(copied, calls):
    ours, theirs = pair("llama, tied head")
    twin = copied(ours)
    assert [type(m) for m in twin.modules()] == [type(m) for m in ours.modules()]
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    with torch.no_grad():
        twin.model.layers[0].mlp.up_proj.weight.zero_()
        check(ours, theirs, batch=1)
        assert calls["norm_gate_up"] == 3
        assert not torch.equal(twin(ids(1, 5)).logits, ours(ids(1, 5)).logits)
    assert calls["norm_gate_up"] == 9


def test_torch_save_of_a_whole_model_loads_again():
    ours, theirs = pair()
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    check(torch.load(file, weights_only=False), theirs)


@pytest.mark.parametrize("family", ["llama", "llama, tied head", "qwen3"])
def test_a_saved_model_loads_in_plain_transformers_with_the_same_weights(family: str, tmp_path):
    ours, theirs = pair(family)
    ours.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert [type(m) for m in loaded.modules()] == [type(m) for m in theirs.modules()]
    for name, weight in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_weights_loaded_or_replaced_afterwards_are_used():
    ours, _ = pair("llama")
    other = small_model("llama", initializer_range=0.1)
    ours.load_state_dict(other.state_dict())
    check(ours, other)
    ours.resize_token_embeddings(VOCAB + 5, mean_resizing=False)
    assert ours.lm_head.weight.shape[0] == VOCAB + 5
    assert type(pyprune.restore(ours).lm_head) is nn.Linear


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("a GPT-2", "GPT2LMHeadModel"),
        (nn.Linear(3, 3), "Linear"),
        ("meta-llama/Llama-2-7b-hf", "str"),
        (None, "NoneType"),
    ],
    ids=str,
)
def test_other_models_are_refused_by_name(given, named: str):
    if given == "a GPT-2":
        given = GPT2LMHeadModel(
            GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, bos_token_id=None, eos_token_id=None)
        )
    classes = [type(m) for m in given.modules()] if isinstance(given, nn.Module) else []
    with pytest.raises(InputError, match=rf"{named} given; .*accepted"):
        pyprune.accelerate(given)
    assert not classes or [type(m) for m in given.modules()] == classes


def test_only_modules_can_be_restored():
    with pytest.raises(InputError, match=r"str given; .*accepted"):
        pyprune.restore("a name")
    rotary = LlamaRotaryEmbedding(LlamaConfig(**SIZES))
    assert type(pyprune.restore(rotary)) is LlamaRotaryEmbedding


@pytest.mark.real_model
def test_smollm2_writes_the_same_text(smollm2, calls):
    tokenizer = smollm2.tokenizer()
    tokenizer.padding_side = "left"
    model = pyprune.to_transformers(smollm2)
    prompts = ["The capital of France is", "To make bread, you first", "2 + 2 ="]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    text = writer(prompts[0], max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert not any(calls.values())
    pyprune.accelerate(model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), expected)
    assert calls["norm_qkv_rope"] == 30 * 8
    assert writer(prompts[0], max_new_tokens=8, do_sample=False)[0]["generated_text"] == text
