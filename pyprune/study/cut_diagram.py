"""A pruning drawn for the model at hand, after the paper's figure of what is pruned: a stack of
blocks, and scissors where they cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from pyprune.models.original_sizes import OriginalSizes
from pyprune.models.pruning import Pruning

LIGHT = {
    "text": "#1f2328", "muted": "#59636e", "ground": "#ffffff", "attention": "#0072B2", "ffn": "#009E73",
    "cut": "#C4452A",
}  # fmt: skip
DARK = {
    "text": "#e6edf3", "muted": "#9aa4af", "ground": "#14171b", "attention": "#4C9FD6", "ffn": "#3DBA93",
    "cut": "#FF8A70",
}  # fmt: skip
RULES = (
    ".cut .ground {{ fill: {ground} }} .cut .attention {{ fill: {attention} }} .cut .ffn {{ fill: {ffn} }}"
    " .cut .gone {{ fill: none; stroke: {muted}; stroke-width: .8; stroke-dasharray: 2.5 2 }}"
    " .cut .gap {{ stroke: {ground}; stroke-width: 1.2 }}"
    " .cut .line {{ stroke: {cut}; stroke-width: 1; stroke-dasharray: 4 3 }}"
    " .cut .scissors {{ fill: none; stroke: {cut}; stroke-width: 1.4; stroke-linecap: round }}"
    " .cut text {{ fill: {text} }} .cut .faint {{ fill: {muted} }} .cut .lost {{ fill: {cut} }}"
)
FONT = "font: {size}px system-ui, sans-serif"
TALL_FROM = 41
"""Stacks of so many blocks are drawn with lower lines."""

INDEX, ATTENTION, FFN, COUNTS = 20.0, 84.0, 112.0, 54.0
"""Widths of a line's parts: the block's number, its boxes, and what is left of each."""
SCISSORS, SPACE = 16.0, 6.0
BLADES, RING = "M5.6 4.4 13.5 9.6M5.6 7.6 13.5 2.4", "a2.3 2.3 0 1 0 4.6 0a2.3 2.3 0 1 0-4.6 0"
HANDLES = f"M1.4 3{RING}M1.4 9{RING}"
HEAD = 58.0
"""Height of the lines above a stack."""


@dataclass(frozen=True)
class Cut:
    """A pruning, its name in the drawing, and the sizes of the model that it prunes."""

    name: str
    pruning: Pruning
    sizes: OriginalSizes

    def counts(self) -> str:
        """How much goes, in words: "8 of 30 blocks", "60 of 270 heads, 11,730 of 46,080 neurons"."""
        pruning, sizes = self.pruning, self.sizes
        heads = sum(len(heads_cut(pruning, sizes, block)) for block in range(sizes.blocks) if _has_mha(pruning, block))
        neurons = sum(map(len, pruning.neurons.values()))
        parts = {
            "blocks": (len(pruning.blocks), sizes.blocks),
            "attentions": (len(pruning.mha), sizes.blocks),
            "FFNs": (len(pruning.ffn), sizes.blocks),
            "heads": (heads, sizes.blocks * sizes.heads),
            "neurons": (neurons, sizes.blocks * sizes.width),
        }
        return ", ".join(f"{gone:,} of {all_:,} {name}" for name, (gone, all_) in parts.items() if gone) or "nothing"


def heads_cut(pruning: Pruning, sizes: OriginalSizes, block: int) -> set[int]:
    """Query heads of a block that go by themselves or with their KV group."""
    groups = pruning.kv_groups.get(block, ())
    with_group = {head for group in groups for head in range(group * sizes.group, (group + 1) * sizes.group)}
    return with_group | set(pruning.heads.get(block, ()))


def cut_svg(cuts: Sequence[Cut]) -> str:
    """An SVG file with a stack for each cut, side by side, in light or dark as its reader's screen is."""
    drawn = [_stack(cut) for cut in cuts]
    width, height = sum(stack[1] for stack in drawn), max(stack[2] for stack in drawn)
    style = f"{RULES.format(**LIGHT)} @media (prefers-color-scheme: dark) {{ {RULES.format(**DARK)} }}"
    left, parts = 0.0, []
    for text, stack_width, stack_height in drawn:
        parts.append(f'<g transform="translate({_n(left)} {_n(height - stack_height)})">{text}</g>')
        left += stack_width
    label = "; ".join(f"{cut.name}: {cut.counts()} cut" for cut in cuts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cut" role="img" aria-label="{escape(label)}" '
        f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"><style>{style}</style>'
        f'<rect class="ground" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def cut_element(cut: Cut) -> str:
    """The stack of one cut as an SVG element for a page, in whose colours `page_rules` puts it."""
    text, width, height = _stack(cut)
    return (
        f'<svg class="cut" role="img" aria-label="{escape(f"{cut.name}: {cut.counts()} cut")}" width="{_n(width)}" '
        f'height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}">{text}</svg>'
    )


def page_rules() -> str:
    """The style of the elements, by the names of the pages' colours."""
    return RULES.format(**{name: f"var(--{name})" for name in LIGHT})


def _stack(cut: Cut) -> tuple[str, float, float]:
    """The drawing of one cut at the origin, its width and its height."""
    pruning, sizes = cut.pruning, cut.sizes
    pitch = 16.0 if sizes.blocks < TALL_FROM else 12.0
    narrowed = bool(pruning.kv_groups or pruning.heads or pruning.neurons)
    left = 10 + INDEX + SCISSORS
    right = left + ATTENTION + SPACE + FFN
    width = right + (SPACE + COUNTS if narrowed else 0) + 12
    parts = [
        _text(10, 18, cut.name, 14, weight=600),
        _text(10, 35, f"cut: {cut.counts()}", 10.5, "faint"),
        _text(left, 52, f"{sizes.heads} heads", 10.5, "faint"),
        _text(left + ATTENTION + SPACE, 52, f"FFN, {sizes.width:,} neurons", 10.5, "faint"),
    ]
    if narrowed:
        parts.append(_text(right + SPACE, 52, "what stays", 10.5, "faint"))
    for block in range(sizes.blocks):
        top = HEAD + (sizes.blocks - 1 - block) * pitch  # the first block is the lowest
        parts.append(f"<g>{''.join(_line(cut, block, left, right, top, pitch))}</g>")
    return "".join(parts), width, HEAD + sizes.blocks * pitch + 8


def _line(cut: Cut, block: int, left: float, right: float, top: float, pitch: float) -> Iterator[str]:
    """One block: its number, its attention by heads, its FFN by the share of neurons, and what is left of them."""
    pruning, sizes, height = cut.pruning, cut.sizes, pitch - 3
    middle, size = top + height / 2, 0.66 * pitch
    ffn_left = left + ATTENTION + SPACE
    gone = block in pruning.blocks
    yield f"<title>{escape(_words(cut, block))}</title>"
    yield _text(10 + INDEX - 5, middle + 0.36 * size, str(block), size, "lost" if gone else "faint", anchor="end")
    if gone:
        yield _box("gone", left, top, ATTENTION, height) + _box("gone", ffn_left, top, FFN, height)
        yield f'<line class="line" x1="{_n(left)}" x2="{_n(right)}" y1="{_n(middle)}" y2="{_n(middle)}"/>'
        yield _scissors(left - SCISSORS, middle, height)
        return
    if block in pruning.mha:
        yield _box("gone", left, top, ATTENTION, height) + _scissors(left + 3, middle, height)
    else:
        yield from _heads(heads_cut(pruning, sizes, block), sizes, left, top, height)
    if block in pruning.ffn:
        yield _box("gone", ffn_left, top, FFN, height) + _scissors(ffn_left + 3, middle, height)
    else:
        yield from _neurons(len(pruning.neurons.get(block, ())), sizes, ffn_left, top, height)
    if _narrowed(pruning, block):
        yield _text(right + SPACE, middle + 0.36 * size, _left_over(cut, block), size, "faint")


def _heads(cut: set[int], sizes: OriginalSizes, left: float, top: float, height: float) -> Iterator[str]:
    """Runs of heads that stay or go, and thin gaps between KV groups."""
    step = ATTENTION / sizes.heads
    for is_cut, run in groupby(range(sizes.heads), cut.__contains__):
        heads = list(run)
        start, length = left + heads[0] * step, len(heads) * step
        if length >= 4 or not is_cut:  # dashes would fill a narrower box; it stays empty
            yield _box("gone" if is_cut else "attention", start, top, length, height)
        if is_cut and length >= SCISSORS:
            yield _scissors(start + 1, top + height / 2, height)
    for group in range(1, sizes.kv_groups):
        if not {group * sizes.group - 1, group * sizes.group} & cut:
            x = _n(left + group * sizes.group * step)
            yield f'<line class="gap" x1="{x}" x2="{x}" y1="{_n(top)}" y2="{_n(top + height)}"/>'


def _neurons(cut: int, sizes: OriginalSizes, left: float, top: float, height: float) -> Iterator[str]:
    """The share that stays, and the share that goes behind it: neurons have no order worth showing."""
    kept = FFN * (1 - cut / sizes.width)
    yield _box("ffn", left, top, kept, height)
    if cut:
        yield _box("gone", left + kept, top, FFN - kept, height)
        if FFN - kept >= SCISSORS:
            yield _scissors(left + kept + 1, top + height / 2, height)


def _scissors(left: float, middle: float, height: float) -> str:
    """Scissors of about that height which point to the right."""
    scale = min(height, 12) / 12
    place = f"translate({_n(left)} {_n(middle - 6 * scale)}) scale({_n(scale)})"
    return f'<path class="scissors" transform="{place}" d="{BLADES}{HANDLES}"/>'


def _words(cut: Cut, block: int) -> str:
    pruning = cut.pruning
    if block in pruning.blocks:
        return f"block {block}: cut"
    missing = [name for name, indices in (("attention", pruning.mha), ("FFN", pruning.ffn)) if block in indices]
    kept = f"{_left_over(cut, block)} (heads, neurons) stay" if _narrowed(pruning, block) else "the rest stays"
    if not missing and not _narrowed(pruning, block):
        return f"block {block}: stays whole"
    return f"block {block}: " + ", ".join([*(f"{name} cut" for name in missing), kept])


def _left_over(cut: Cut, block: int) -> str:
    """Heads and neurons that stay: "6, 1145"."""
    pruning, sizes = cut.pruning, cut.sizes
    heads = sizes.heads - len(heads_cut(pruning, sizes, block)) if _has_mha(pruning, block) else 0
    neurons = 0 if block in pruning.ffn else sizes.width - len(pruning.neurons.get(block, ()))
    return f"{heads}, {neurons}"


def _has_mha(pruning: Pruning, block: int) -> bool:
    return block not in pruning.blocks and block not in pruning.mha


def _narrowed(pruning: Pruning, block: int) -> bool:
    return any(block in layers for layers in (pruning.kv_groups, pruning.heads, pruning.neurons))


def _box(kind: str, left: float, top: float, width: float, height: float) -> str:
    inset = 0.5 if kind == "gone" else 0.0  # a stroke lies on both sides of the edge
    width, height = max(width - 2 * inset, 0.5), height - 2 * inset
    place = f'x="{_n(left + inset)}" y="{_n(top + inset)}" width="{_n(width)}" height="{_n(height)}"'
    return f'<rect class="{kind}" {place} rx="1.5"/>'


def _text(
    x: float, y: float, text: str, size: float, kind: str = "", *, anchor: str = "start", weight: int = 400
) -> str:
    named = f' class="{kind}"' if kind else ""
    style = f"{FONT.format(size=_n(size))}; font-weight: {weight}; text-anchor: {anchor}"
    return f'<text{named} x="{_n(x)}" y="{_n(y)}" style="{style}">{escape(text)}</text>'


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
