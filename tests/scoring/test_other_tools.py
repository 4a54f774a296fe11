"""Conversions to and from other tools' forms, which stand in for the tools by their documented files and arguments."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from naive import edited, outputs, perplexity
from safetensors.torch import save_file

from pyprune import InputError, Pruning, apply, depth, load, score, to_transformers
from pyprune.scoring.other_tools import (
    layer_importance,
    llm_drop_lists,
    mergekit_config,
    pruning_of_llm_drop,
    pruning_of_mergekit,
    puzzletron_candidates,
    removed_layers,
)
from tests import seeds

ROOT = Path(__file__).resolve().parents[2]
SHAPE = "shape:hidden=24,blocks=4,heads=6,kv_heads=3,head_dim=4,ffn=37,vocab=101"


@pytest.fixture(scope="module")
def decoder():
    return load(SHAPE)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 101, (2, 11), generator=seeds.generator(71))


def replacement(block, kv_heads=None, width=None, paths=()):
    """One entry of Puzzletron's library; None: the sublayer is left out."""
    attention = {"no_op": kv_heads is None, "num_key_value_heads": kv_heads}
    ffn = {"no_op": width is None, "intermediate_size": width, "moe": None}
    return {
        "parent_layer_indices": [block],
        "child_block_configs": [{"attention": attention, "ffn": ffn, "parallel_blocks": None}],
        "weight_paths": list(paths),
    }


@pytest.fixture
def library(decoder, tmp_path):
    """A library whose weights are those of prunings, in files as Puzzletron splits them."""
    prunings = {"narrow": Pruning(neurons={1: [0, 3, 9]}), "groups": Pruning(kv_groups={2: [1]})}
    for name, pruning in prunings.items():
        block = 1 if name == "narrow" else 2
        part = "mlp" if name == "narrow" else "self_attn"
        model = to_transformers(apply(decoder, pruning))
        tensors = {
            f"model.layers.{block}.{key}": value.clone()
            for key, value in model.model.layers[block].state_dict().items()
            if key.startswith(part)
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
    entries = [
        replacement(1, 3, 37),  # the parent itself
        replacement(1, 3, 34, ["narrow.safetensors"]),
        replacement(2, 2, 37, ["groups.safetensors"]),
        replacement(2, 2, None, [str(tmp_path / "groups.safetensors")]),
        replacement(0),
    ]
    (tmp_path / "replacement_library.json").write_text(json.dumps(entries))
    return tmp_path / "replacement_library.json"


def test_a_puzzletron_library_is_scored_as_its_models(decoder, ids, library):
    candidates = puzzletron_candidates(decoder, library)
    assert list(candidates) == ["block 1, 1", "block 2, 0", "block 2, 1", "block 0, 0"]
    naive = [
        Pruning(neurons={1: [0, 3, 9]}),
        Pruning(kv_groups={2: [1]}),
        Pruning(kv_groups={2: [1]}, ffn=[2]),
        Pruning(blocks=[0]),
    ]
    expected = [perplexity(outputs(edited(decoder, pruning), ids)[0], ids) for pruning in naive]
    assert score(decoder, ids, candidates=candidates).values == pytest.approx(expected, rel=1e-4)


def test_a_library_of_another_form_is_refused(decoder, library):
    def refused(entries, message):
        library.write_text(json.dumps(entries))
        with pytest.raises(InputError, match=message):
            puzzletron_candidates(decoder, library)

    refused("none", "a list of replacements")
    refused([{"block": 1}], "of one block by one is expected")
    newer = {**replacement(1), "child_block_configs": [{"subblock_configs": []}]}
    refused([newer], "the configuration of block 1 has subblock_configs; attention and ffn are expected")
    refused([replacement(9)], "replaces block 9, which")
    refused([replacement(1, 3, 20, ["narrow.safetensors"])], "intermediate_size of block 1 is 20, but weights of 34")
    refused([replacement(1, 3, 20)], "intermediate_size of block 1 is 20, but weights of 37")
    refused([replacement(1, 3, 34, ["gone.safetensors"])], "gone.safetensors")
    linear = replacement(1, 3, 37)
    linear["child_block_configs"][0]["ffn"]["replace_with_linear"] = True
    refused([linear], "replace_with_linear")


def test_lists_of_llm_drop_come_and_go():
    pruning = Pruning(blocks=[5], mha=[1, 3], ffn=[2])
    lists = llm_drop_lists(pruning)
    assert lists == {"drop_attn_list": [1, 3, 5], "drop_mlp_list": [2, 5]}
    back = pruning_of_llm_drop(lists)
    assert (back.blocks, back.mha, back.ffn) == ((5,), (1, 3), (2,))
    assert pruning_of_llm_drop({"drop_attn_list": [False, True, False]}).mha == (1,)
    with pytest.raises(InputError, match="drop_mlp_list"):
        pruning_of_llm_drop({"drop_mlp_list": ["2"]})
    with pytest.raises(InputError, match="neurons"):
        llm_drop_lists(Pruning(neurons={0: [1]}))


def test_merges_of_mergekit_come_and_go():
    config = mergekit_config(Pruning(blocks=[0, 3, 4, 7]), "a/model", 8)
    assert [part["sources"][0]["layer_range"] for part in config["slices"]] == [[1, 3], [5, 7]]
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert pruning_of_mergekit(config, 8).blocks == (0, 3, 4, 7)
    for change, message in (
        ({"merge_method": "slerp"}, "passthrough"),
        ({"slices": [*config["slices"], config["slices"][0]]}, "each once"),
        ({"slices": []}, "each once"),
    ):
        with pytest.raises(InputError, match=message):
            pruning_of_mergekit(config | change, 8)
    with pytest.raises(InputError, match="each once"):
        pruning_of_mergekit(config, 5)
    with pytest.raises(InputError, match="whole blocks"):
        mergekit_config(Pruning(mha=[1]), "a/model", 8)
    with pytest.raises(InputError, match="block 9"):
        mergekit_config(Pruning(blocks=[9]), "a/model", 8)


def test_optipfair_removes_the_layers_that_are_ranked_lowest(decoder, ids):
    """By its own package where that is installed, whose model must then be ours."""
    scores = score(decoder, ids)
    importance = layer_importance(scores)
    pruning = depth(scores, count=2)
    assert list(importance) == [0, 1, 2, 3]
    assert sorted(sorted(importance, key=importance.__getitem__)[:2]) == removed_layers(pruning)
    with pytest.raises(InputError, match="scores of blocks"):
        layer_importance(score(decoder, ids, unit="mha"))
    optipfair = pytest.importorskip("optipfair", reason="OptiPFair is not installed; its arguments are checked above")
    model = to_transformers(decoder.map(torch.clone))
    smaller = optipfair.prune_model(
        model, pruning_type="DEPTH", layer_indices=removed_layers(pruning), show_progress=False
    )
    expected = perplexity(outputs(edited(decoder, pruning), ids)[0], ids)
    assert perplexity(outputs(smaller, ids)[0], ids) == pytest.approx(expected, rel=1e-5)


def test_the_examples_run(library, tmp_path, monkeypatch, capsys):
    text = torch.randint(0, 101, (40,), generator=seeds.generator(72)).numpy()
    numpy.save(tmp_path / "ids.npy", numpy.tile(text, 40))
    for name, words in (
        ("score_puzzletron_library.py", [SHAPE, library, tmp_path / "ids.npy"]),
        ("drop_layers_with_mergekit.py", [SHAPE, 2, tmp_path / "ids.npy"]),
    ):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("block ")]) == 4
    assert yaml.safe_load(out[out.index("slices:") :])["merge_method"] == "passthrough"
