"""A pruning in the words of other tools: each form read back by its tool's rules, and what it cannot say refused."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from pyprune.errors import InputError
from pyprune.pruning import Pruning
from pyprune.pruning.export import FORMATS, export

BLOCKS = Pruning(model="org/model", blocks=(0, 2, 3, 6))

ADDED = {"blocks.3.down.bias": torch.tensor([0.5, -2.0])}


def kept_by(configuration: dict) -> list[int]:
    """The layers that a passthrough configuration stacks, by mergekit's reading of half-open ranges."""
    ranges = [source["layer_range"] for part in configuration["slices"] for source in part["sources"]]
    return [layer for first, end in ranges for layer in range(first, end)]


@pytest.mark.parametrize(
    ("blocks", "slices"),
    [((0, 2, 3, 6), [[1, 2], [4, 6], [7, 8]]), ((7,), [[0, 7]]), ((0,), [[1, 8]]), (range(1, 8), [[0, 1]])],
)
def test_mergekit_stacks_one_slice_for_each_run_of_kept_blocks(blocks, slices):
    written = yaml.safe_load(export(Pruning(blocks=tuple(blocks)), "mergekit", blocks=8, model="org/model"))
    assert written["merge_method"] == "passthrough"
    assert [part["sources"][0]["layer_range"] for part in written["slices"]] == slices
    assert kept_by(written) == [block for block in range(8) if block not in set(blocks)]
    assert {source["model"] for part in written["slices"] for source in part["sources"]} == {"org/model"}
    assert set(written) == {"merge_method", "slices"}


@pytest.mark.parametrize("name", ["a: b", 'C:\\models\\"quoted"', "modèle/🦙", "- x", "true", "#1"])
def test_any_model_name_comes_back_from_the_yaml(name):
    written = yaml.safe_load(export(Pruning(blocks=(1,)), "mergekit", blocks=3, model=name))
    assert written["slices"][0]["sources"][0]["model"] == name


def test_mergekit_needs_a_model_and_its_blocks():
    with pytest.raises(InputError, match="model and blocks are expected"):
        export(BLOCKS, "mergekit")
    with pytest.raises(InputError, match="model and blocks are expected"):
        export(Pruning(blocks=(1,)), "mergekit", blocks=8)


def test_llm_drop_lists_a_block_under_both_of_its_sublayers():
    written = json.loads(export(Pruning(blocks=(3,), mha=(5, 1), ffn=(4,)), "llm-drop"))
    assert written == {"drop_attn_list": [1, 3, 5], "drop_mlp_list": [3, 4]}


def test_optipfair_counts_layers_from_0():
    assert json.loads(export(BLOCKS, "optipfair")) == {"pruning_type": "DEPTH", "layer_indices": [0, 2, 3, 6]}


def test_model_optimizer_counts_layers_from_1():
    assert json.loads(export(BLOCKS, "modelopt")) == {"layers_to_drop": [1, 3, 4, 7]}


def test_plain_json_loses_nothing():
    whole = Pruning("org/model", (1,), (2,), (3,), {4: (0,)}, {5: (6, 7)}, 64, "hand")
    assert Pruning.from_dict(json.loads(export(whole, "json"))) == whole


def test_the_text_of_plain_json_does_not_stand_for_values_added_to_biases():
    with pytest.raises(InputError, match=r"the values added to blocks\.3\.down\.bias are not part of the text"):
        export(Pruning(compensation=ADDED), "json")


def test_plain_json_is_given_the_model_that_a_pruning_lacks():
    assert json.loads(export(Pruning(blocks=(1,)), "json", model="org/model"))["model"] == "org/model"
    assert json.loads(export(BLOCKS, "json", model="other"))["model"] == "org/model"


@pytest.mark.parametrize(
    ("pruning", "tools", "told"),
    [
        (Pruning(blocks=(0,), mha=(1,)), ("mergekit", "optipfair", "modelopt"), r"mha \[1\] cannot be expressed"),
        (Pruning(ffn=(1, 2)), ("mergekit", "optipfair", "modelopt"), r"ffn \[1, 2\] cannot be expressed"),
        (Pruning(blocks=(0,), kv_groups={3: (1,)}), set(FORMATS) - {"json"}, "kv_groups of block 3 cannot"),
        (Pruning(blocks=(0,), neurons={2: (9,)}), set(FORMATS) - {"json"}, "neurons of block 2 cannot"),
        (Pruning(blocks=(0,), heads={4: (1,)}), set(FORMATS) - {"json"}, "heads of block 4 cannot"),
        (Pruning(blocks=(0,), compensation=ADDED), set(FORMATS) - {"json"}, "added to blocks.3.down.bias cannot"),
        (Pruning(blocks=(0,), pad_to=64), set(FORMATS) - {"json"}, "pad_to 64 cannot"),
        (Pruning(), set(FORMATS) - {"json"}, "there is nothing to write"),
    ],
)
def test_what_a_tool_cannot_express_is_refused_with_the_reason(pruning, tools, told):
    for to in tools:
        with pytest.raises(InputError, match=f"export to {to}: .*{told}"):
            export(pruning, to, blocks=8, model="org/model")


def test_blocks_that_the_model_lacks_are_refused():
    with pytest.raises(InputError, match="names block 6; 0 to 5 are accepted"):
        export(BLOCKS, "optipfair", blocks=6)
    for pruning in (Pruning(heads={6: (0,)}), Pruning(compensation={"blocks.6.o.bias": torch.ones(2)})):
        with pytest.raises(InputError, match="names block 6; 0 to 5 are accepted"):
            export(pruning, "json", blocks=6)
    with pytest.raises(InputError, match="all 4 blocks are removed"):
        export(Pruning(blocks=range(4)), "llm-drop", blocks=4)


def test_an_unknown_tool_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'onnx': mergekit, llm-drop, optipfair, modelopt, json are accepted"):
        export(BLOCKS, "onnx")
