"""What was cut, drawn block by block from a pruning, a checkpoint or a comparison."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pyprune import Pruning, apply, load
from pyprune.errors import InputError
from pyprune.files import write_json
from pyprune.models.original_sizes import OriginalSizes
from pyprune.study.cut_diagram import DARK, LIGHT, Cut, cut_element, cut_svg
from pyprune.study.cuts import cuts_of
from pyprune.study.redraw import redraw

SVG = "{http://www.w3.org/2000/svg}"
SIZES = OriginalSizes(blocks=30, kv_groups=3, width=1536, heads=9)


def drawn(cut: Cut) -> ElementTree.Element:
    return ElementTree.fromstring(cut_svg([cut]))


def boxes(root: ElementTree.Element, block: int, kind: str) -> list[dict[str, float]]:
    """The boxes of one class in one block's line, from left to right."""
    lines = [g for g in root.iter(f"{SVG}g") if g.find(f"{SVG}title") is not None]
    line = next(g for g in lines if re.match(rf"block {block}:", g.find(f"{SVG}title").text))
    elements = [box.attrib for box in line.iter(f"{SVG}rect") if box.get("class") == kind]
    return sorted(
        ({name: float(box[name]) for name in ("x", "y", "width")} for box in elements), key=lambda box: box["x"]
    )


def scissors(root: ElementTree.Element) -> int:
    return sum(path.get("class") == "scissors" for path in root.iter(f"{SVG}path"))


def test_removed_blocks_are_dashed_and_cut_with_scissors_and_the_others_are_whole():
    root = drawn(Cut("depth", Pruning(blocks=(3, 17)), SIZES))
    for block in range(30):
        gone = block in (3, 17)
        assert len(boxes(root, block, "gone")) == (2 if gone else 0)
        assert len(boxes(root, block, "ffn")) == (0 if gone else 1)
    assert scissors(root) == 2


def test_the_first_block_is_the_lowest():
    root = drawn(Cut("whole", Pruning(), SIZES))
    heights = [boxes(root, block, "ffn")[0]["y"] for block in range(30)]
    assert heights == sorted(heights, reverse=True)


def test_a_sublayer_goes_alone():
    root = drawn(Cut("sublayers", Pruning(mha=(2,), ffn=(5,)), SIZES))
    assert (len(boxes(root, 2, "attention")), len(boxes(root, 2, "ffn")), len(boxes(root, 2, "gone"))) == (0, 1, 1)
    assert (len(boxes(root, 5, "attention")), len(boxes(root, 5, "ffn")), len(boxes(root, 5, "gone"))) == (1, 0, 1)
    assert scissors(root) == 2


def test_heads_are_cut_where_they_stand_and_neurons_by_their_share():
    pruning = Pruning(kv_groups={4: (1,)}, neurons={4: tuple(range(512))})
    root = drawn(Cut("width", pruning, SIZES))
    kept, ffn = boxes(root, 4, "attention"), boxes(root, 4, "ffn")[0]
    whole_attention, whole_ffn = boxes(root, 0, "attention")[0], boxes(root, 0, "ffn")[0]
    # Groups 0 and 2 of 3 stay, each a third of the attention.
    assert [box["width"] for box in kept] == pytest.approx([whole_attention["width"] / 3] * 2)
    assert kept[1]["x"] - kept[0]["x"] == pytest.approx(2 / 3 * whole_attention["width"])
    assert ffn["width"] == pytest.approx(whole_ffn["width"] * (1 - 512 / 1536), abs=0.02)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "6, 1024" in texts
    assert "cut: 3 of 270 heads, 512 of 46,080 neurons" in texts


def test_single_query_heads_count_beside_groups():
    cut = Cut("heads", Pruning(kv_groups={0: (0,)}, heads={0: (3, 6), 1: (0, 3, 6)}), SIZES)
    assert cut.counts() == "8 of 270 heads"


def test_a_cut_of_nothing_says_so():
    assert Cut("whole", Pruning(), SIZES).counts() == "nothing"


@pytest.mark.parametrize("blocks", [1, 30, 40, 41, 80])
def test_lines_do_not_overlap_and_letters_stay_readable(blocks):
    sizes = OriginalSizes(blocks=blocks, kv_groups=8, width=28672, heads=64)
    root = drawn(Cut("deep", Pruning(neurons={0: (1, 2)}), sizes))
    tops = sorted(boxes(root, block, "ffn")[0]["y"] for block in range(blocks))
    heights = {float(b.get("height")) for b in root.iter(f"{SVG}rect") if b.get("class") == "ffn"}
    assert all(low - high > max(heights) for high, low in itertools.pairwise(tops))
    letters = [float(re.match(r"font: ([\d.]+)px", text.get("style"))[1]) for text in root.iter(f"{SVG}text")]
    assert min(letters) >= 7.5
    assert float(root.get("height")) <= 1100


def test_several_stand_side_by_side_in_light_and_dark_and_names_are_escaped():
    depth, whole = Cut("a <b>", Pruning(blocks=(1,)), SIZES), Cut("b", Pruning(), SIZES)
    text = cut_svg([depth, whole])
    root = ElementTree.fromstring(text)
    assert float(root.get("width")) > 1.5 * float(ElementTree.fromstring(cut_svg([whole])).get("width"))
    assert "prefers-color-scheme: dark" in text
    assert all(colour in text for colour in (*LIGHT.values(), *DARK.values()))
    assert root.get("aria-label") == "a <b>: 1 of 30 blocks cut; b: nothing cut"
    assert "<style" not in cut_element(depth)  # the page has it


def test_a_pruning_a_checkpoint_and_a_comparison_are_drawn(tiny, results, tmp_path):
    pruning = Pruning(blocks=(1,), neurons={0: (3, 4)}, model=tiny.name)
    apply(tiny, pruning).save(tmp_path / "small")
    pruning.to_json(tmp_path / "cut.json")
    results["rows"][1]["pruning"] = {"blocks": [3]}
    results["rows"][3]["pruning"] = {"as": "wanda-sp 20%", "pad_to": 64}
    write_json(tmp_path / "results.json", results)
    expected = "1 of 5 blocks, 2 of 355 neurons"
    for source in ("small", "small/pruning.json", "cut.json"):
        (cut,) = cuts_of(tmp_path / source)
        assert cut.counts() == expected
        assert cut.name == ("cut" if source == "cut.json" else "small")
    assert [cut.name for cut in cuts_of(tmp_path / "results.json")] == ["depth 20%"]
    assert redraw([tmp_path / "cut.json"], tmp_path / "cut alone.svg") == [tmp_path / "cut alone.svg"]
    out = tmp_path / "cut.svg"
    assert redraw([tmp_path / "small", tmp_path / "results.json"], out, cut=True) == [out]
    assert ElementTree.parse(out).getroot().get("aria-label") == (
        f"small: {expected} cut; depth 20%: 1 of 30 blocks cut"
    )


def test_a_pruning_alone_takes_the_sizes_of_the_model_that_is_named(tmp_path):
    spec = "shape:hidden=24,blocks=4,heads=6,kv_heads=3,head_dim=4,ffn=37,vocab=101"
    Pruning(blocks=(3,), model="elsewhere").to_json(tmp_path / "cut.json")
    with pytest.raises(InputError, match=r"cut.json: names the model 'elsewhere'.* --model MODEL is expected"):
        cuts_of(tmp_path / "cut.json")
    assert cuts_of(tmp_path / "cut.json", spec)[0].sizes == OriginalSizes.of(load(spec))


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tiny, results, tmp_path):
    spec = tiny.name
    write_json(tmp_path / "results.json", results)
    write_json(tmp_path / "torn.json", {"format": "pyprune-comparison/1", "rows": []})
    write_json(tmp_path / "other.json", {"format": "pyprune-scores/1"})
    Pruning(blocks=(7,), model=spec).to_json(tmp_path / "beyond.json")
    Pruning(blocks=(1,)).to_json(tmp_path / "nameless.json")
    refusals = [
        ("results.json", {"cut": True}, "has no pruned rows"),
        ("results.json", {"cut": True, "model": spec}, "--model .* belongs to a pruning"),
        ("results.json", {"model": spec}, "--model .* belongs to a pruning"),
        ("results.json", {"cut": True, "count": 2}, "--count 2: belongs to scores"),
        ("results.json", {"cut": True, "paper": True}, "--paper"),
        ("beyond.json", {"dark": True}, "--dark"),
        ("torn.json", {"cut": True}, "torn.json: incomplete results"),
        ("other.json", {"cut": True}, "other.json: pruning: format 'pyprune-scores/1'"),
        ("beyond.json", {"model": spec}, "names block 7; 0 to 4"),
        ("nameless.json", {}, "names no model"),
        ("none.json", {}, "none.json: No such file"),
    ]
    for name, options, message in refusals:
        with pytest.raises(InputError, match=message):
            redraw([tmp_path / name], tmp_path / "out.svg", **options)
        assert not (tmp_path / "out.svg").exists()
    for option in ({"model": spec}, {"cut": True}):
        with pytest.raises(InputError, match=r"--(model|cut) .*\.svg"):
            redraw([tmp_path / "beyond.json"], tmp_path / "out", **option)
