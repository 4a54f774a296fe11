"""The sizes of a decoder as reports show them."""

import pyprune
from pyprune.models.sizes import describe_sizes, kv_bytes_per_position

SPEC = "shape:hidden=16,blocks=3,heads=4,kv_heads=2,head_dim=4,ffn=10,vocab=11"
BLOCK = 2 * 16 + 2 * 16 * 16 + 2 * 8 * 16 + 3 * 10 * 16
WHOLE = 3 * BLOCK + 2 * 11 * 16 + 16


def test_the_sizes_of_a_uniform_model_are_numbers():
    decoder = pyprune.load(SPEC, dtype="float32")
    assert describe_sizes(decoder, WHOLE) == {
        "parameters": WHOLE,
        "removed_share": 0.0,
        "blocks": 3,
        "ffn_width": 10,
        "heads": 4,
        "kv_heads": 2,
        "bytes_per_token": 4 * (WHOLE - 10 * 16),  # one row of the embedding's eleven is read
        "kv_bytes_per_position": 3 * 2 * 8 * 4,
    }
    assert kv_bytes_per_position(decoder.to(pyprune.models.tensors.DTYPES["bf16"])) == 3 * 2 * 8 * 2


def test_sizes_that_differ_are_ranges_and_missing_sublayers_count_for_none():
    decoder = pyprune.load(SPEC, dtype="float32")
    ragged = pyprune.apply(decoder, pyprune.Pruning(mha=[0], kv_groups={1: [0]}, neurons={2: [0, 1, 2]}))
    sizes = describe_sizes(ragged, WHOLE)
    assert (sizes["blocks"], sizes["ffn_width"], sizes["heads"], sizes["kv_heads"]) == (3, "7-10", "2-4", "1-2")
    assert sizes["kv_bytes_per_position"] == (1 + 2) * 2 * 4 * 4
    assert sizes["removed_share"] == 1 - sizes["parameters"] / WHOLE > 0
    none = describe_sizes(pyprune.apply(decoder, pyprune.Pruning(mha=[0, 1, 2])), WHOLE)
    assert (none["heads"], none["kv_heads"], none["kv_bytes_per_position"]) == ("none", "none", 0)
