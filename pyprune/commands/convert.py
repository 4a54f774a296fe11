"""`pyprune convert`: write a model in another format, GGUF or a Hugging Face checkpoint."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import loaded
from pyprune.commands.options import MODEL_HELP, add_json, add_stored_dtype, command
from pyprune.commands.output import print_json, print_table
from pyprune.errors import InputError


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "convert",
        "convert a model to GGUF for llama.cpp, or to a Hugging Face checkpoint",
        "Write a model, pruned or not, in another format. A GGUF file uses the family's own architecture if all blocks "
        "are alike, else llama.cpp's deci. It cannot hold sliding windows, a Qwen3 with unequal blocks, or RoPE that "
        "depends on the length: these are refused.",
        "pyprune convert smollm2-depth20 --to gguf --out smollm2-depth20.gguf --dtype bf16",
        "pyprune convert model.gguf --to hf --out model",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--to", choices=("gguf", "hf"), required=True, help="gguf: a .gguf file; hf: a Hugging Face directory"
        " (required)",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        metavar="PATH",
        required=True,
        help="the .gguf file (an existing one is replaced), or a new or empty directory (required)",
    )
    add_stored_dtype(parser, "dtype of the matrices")
    parser.add_argument(
        "--no-tokenizer",
        action="store_true",
        help="gguf: leave the tokenizer out, if its kind cannot be written (default: off)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Write a model in another format."""
    from pyprune.files import read_json
    from pyprune.study.destination import require_directory, require_file

    if options.to == "hf":
        require_directory(options.out)
        if options.no_tokenizer:
            raise InputError("--no-tokenizer: belongs to --to gguf")
    elif not options.out.lower().endswith(".gguf"):
        raise InputError(f"--out {options.out}: a name that ends in .gguf is expected")
    else:
        require_file(options.out)
    decoder = loaded(options.model, options.dtype if options.to == "hf" else None)
    if options.to == "hf":
        decoder.save(options.out)
        config: Any = read_json(os.path.join(options.out, "config.json"))
        kind, files = config["model_type"], [entry.path for entry in os.scandir(options.out)]
    else:
        from pyprune.models.gguf_writer import chosen_architecture

        # Not loaded in that dtype: norms and biases stay as they are.
        decoder.save_gguf(options.out, options.dtype, tokenizer=not options.no_tokenizer)
        kind, files = chosen_architecture(decoder)[0].name, [options.out]
    facts = {
        "model": decoder.name,
        "out": options.out,
        "format": options.to,
        "architecture": kind,
        "dtype": options.dtype or str(decoder.dtype).removeprefix("torch."),
        "blocks": len(decoder.blocks),
        "bytes": sum(os.path.getsize(file) for file in files),
    }
    if options.json:
        return print_json(facts)
    rows = [[name, str(facts[name])] for name in ("architecture", "dtype", "blocks")]
    print_table(["", ""], [*rows, ["MB", f"{facts['bytes'] / 1e6:.1f}"]], f"{decoder.name}, written to {options.out}")
