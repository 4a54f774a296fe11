"""An accelerated model under torch.compile: one graph, the same numbers."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import StaticCache

from tests.judge import assert_model_no_worse, in_float64
from tests.runtime.test_accelerate import check, ids, pair


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tokens"), [("llama with biases", 5), ("mistral with a window", 11), ("qwen3", 70)])
def test_a_whole_sequence_is_one_graph(family: str, tokens: int):
    ours, theirs = pair(family)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    check(compiled, theirs, tokens, use_cache=False)


@pytest.mark.slow
def test_decoding_into_a_static_cache_is_one_graph():
    ours, theirs = pair()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    others = theirs, in_float64(theirs)
    prompt, tokens = ids(2, 6), ids(2, 4, seed=1)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :2] = 0
    caches = [StaticCache(config=ours.config, max_cache_len=20) for _ in range(3)]
    with torch.no_grad():
        for model, cache in zip((ours, *others), caches, strict=True):
            model(prompt, attention_mask=mask[:, :6], past_key_values=cache)
        for step in range(4):
            given = {
                "attention_mask": mask[:, : 7 + step],
                "position_ids": torch.tensor([[6 + step], [4 + step]]),
            }
            token = tokens[:, step : step + 1]
            logits = [
                model(token, past_key_values=cache, **given).logits
                for model, cache in zip((compiled, *others), caches, strict=True)
            ]
            assert_model_no_worse(*logits)
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        assert_model_no_worse(*(layer.keys for layer in layers))


def test_the_graph_holds_the_operators():
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list):
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    ours, _ = pair()
    with torch.no_grad():
        torch.compile(ours, fullgraph=True, backend=backend)(ids(2, 5), use_cache=False)
    for name, count in {"norm_qkv_rope": 3, "linear_residual": 6, "norm_gate_up": 3, "padded_linear": 1}.items():
        assert sum(target == f"pyprune.{name}.default" for target in found) == count


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler takes g++")
def test_inductor_compiles_a_decode_step(tmp_path, monkeypatch):
    # Inductor's own cache does not tell vector widths apart: code compiled under ATEN_CPU_CAPABILITY=avx2 corrupts the
    # heap of a process with AVX-512.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", False)  # of one program
    monkeypatch.setattr(torch._inductor.config.cpp, "simdlen", 1)  # which compiles sooner; our operators are vectorised
    ours, theirs = pair("llama", num_hidden_layers=1)
    compiled, others = torch.compile(ours, fullgraph=True), (theirs, in_float64(theirs))
    caches = [StaticCache(config=ours.config, max_cache_len=12) for _ in range(3)]
    with torch.no_grad():
        for model, cache in zip((ours, *others), caches, strict=True):
            model(ids(1, 4), past_key_values=cache)
        for step in range(2):
            token, places = ids(1, 1, seed=step), torch.tensor([[4 + step]])
            logits = [
                model(token, position_ids=places, past_key_values=cache).logits
                for model, cache in zip((compiled, *others), caches, strict=True)
            ]
            assert_model_no_worse(*logits)
