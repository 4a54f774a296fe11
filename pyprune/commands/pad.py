"""`pyprune pad`: round the FFN widths of a checkpoint up by zeros, which changes nothing that it computes."""

from __future__ import annotations

import argparse
from typing import Any

from pyprune.commands.inputs import chosen_device, loaded
from pyprune.commands.options import WIDTH_ROWS, add_device, add_json, add_rows, command, refuse_ignored
from pyprune.commands.output import Bar, print_json, print_table


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "pad",
        "pad the FFN widths of a checkpoint to a multiple",
        "Pad every FFN width of a checkpoint with zeros to a multiple. The model computes exactly the same, and GEMMs "
        "may run faster. Any checkpoint that pyprune loads is accepted. auto takes the multiple that advise-width "
        "finds best on this machine; 1 removes the padding again.",
        "pyprune pad smollm2-width20 --multiple 64 --out smollm2-width20-padded",
        "pyprune pad smollm2-width20 --multiple auto --rows 1,16 --out smollm2-width20-padded",
    )
    parser.add_argument("model", metavar="DIR", help="Hugging Face directory or hub name, .gguf file or smollm2-135m")
    parser.add_argument(
        "--multiple",
        type=multiple,
        default="auto",
        metavar="N|auto",
        help="multiple of neurons, or auto (default: auto)",
    )
    add_rows(parser, WIDTH_ROWS, "rows of activations that auto measures")
    add_device(parser)
    parser.add_argument(
        "--out", metavar="DIR2", required=True, help="new or empty directory for the checkpoint (required)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Pad a checkpoint's FFN widths and save it."""
    from pyprune import pruning
    from pyprune.study.destination import require_directory

    require_directory(options.out)
    if options.multiple != "auto":
        refuse_ignored(options, "needs --multiple auto, which measures", "rows", "device")
    chosen_device(options)
    decoder = loaded(options.model)
    advice: Any = None
    chosen = options.multiple
    with Bar() as bar:
        if chosen == "auto":
            advice = advised(decoder, options, bar)
            chosen = advice.multiple
        padded = pruning.pad(decoder, chosen)
        bar("saving", 0, 1)
        padded.save(options.out)
        bar("saving", 1, 1)
    before, after = (
        {block.ffn.width for block in model.blocks if block.ffn is not None} for model in (decoder, padded)
    )
    facts: dict[str, Any] = {
        "model": decoder.name,
        "out": options.out,
        "multiple": chosen,
        "widths": {"before": sorted(before), "after": sorted(after)},
        "parameters": {"before": decoder.parameters(), "after": padded.parameters()},
        "bytes_per_token": {"before": decoder.bytes_per_token(), "after": padded.bytes_per_token()},
    }
    if options.json:
        return print_json({**facts, "advice": None if advice is None else advice.to_json()})
    rows = []
    for name, label in (("widths", "FFN width"), ("parameters", "parameters"), ("bytes_per_token", "bytes per token")):
        values = facts[name]
        shown = [span(values[when]) if name == "widths" else f"{values[when]:,}" for when in ("before", "after")]
        rows.append([label, *shown])
    print_table(["", "before", "after"], rows, f"{decoder.name} to a multiple of {chosen}, written to {options.out}")


def advised(decoder: Any, options: argparse.Namespace, bar: Bar) -> Any:
    """What advise-width says of the model's FFN width: the one that most blocks have, the widest of several such.

    Widths are the model's own, without older padding."""
    from collections import Counter

    from pyprune import pruning
    from pyprune.errors import InputError
    from pyprune.study.width_advice import advise

    widths = Counter(block.ffn.width for block in pruning.pad(decoder, 1).blocks if block.ffn is not None)
    if not widths:
        raise InputError(f"pad: {decoder.name} has no FFN sublayer to pad")
    common = max(widths, key=lambda width: (widths[width], width))
    dtype = str(decoder.dtype).removeprefix("torch.")
    return advise(common, decoder.hidden_size, options.rows, dtype, options.device, progress=bar)


def multiple(text: str) -> int | str:
    if text == "auto":
        return text
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r}: auto or a whole number from 1 to {1 << 20} is expected")
    return int(text)


def span(widths: list[int]) -> str:
    return str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
