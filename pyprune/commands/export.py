"""`pyprune export`: a pruning in another tool's format."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pyprune.commands.inputs import loaded_sizes
from pyprune.commands.options import at_least, command
from pyprune.errors import InputError

TOOLS = ("mergekit", "llm-drop", "optipfair", "modelopt", "json")


def add_options(commands: Any) -> None:
    parser = command(
        commands,
        "export",
        "write a pruning in another tool's format",
        "Write a pruning in another tool's format: a mergekit passthrough configuration, the layer lists of LLM-Drop, "
        "OptiPFair or Model Optimizer (which counts from 1), or plain JSON. What the format cannot express, such as "
        "single sublayers in mergekit, is refused.",
        "pyprune export smollm2-depth20/pruning.json --to mergekit --model HuggingFaceTB/SmolLM2-135M --layers 30",
        "pyprune export smollm2-depth20 --to llm-drop --out drop.json",
    )
    parser.add_argument("pruning", metavar="PRUNING", help="a pruning.json, or a directory that prune wrote")
    parser.add_argument("--to", choices=TOOLS, required=True, help="whose format (required)")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the original model where the tool will find it: a Hugging Face directory or hub name (default: the name "
        "in the pruning; required for mergekit)",
    )
    parser.add_argument(
        "--layers",
        type=at_least(1),
        metavar="N",
        help="number of blocks in the original model (default: for mergekit, that of --model)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write; an existing one is replaced (default: standard output; --to json of a pruning that adds "
        "to biases needs a file, and writes compensation.safetensors beside it)",
    )


def run(options: argparse.Namespace) -> None:
    """Write a pruning in another tool's format."""
    from pyprune.files import require_free_file
    from pyprune.pruning import Pruning
    from pyprune.pruning.export import export, write_export

    if options.out is not None:
        require_free_file(options.out)
    path = options.pruning
    pruning = Pruning.from_json(os.path.join(path, "pruning.json") if os.path.isdir(path) else path)
    blocks = _blocks(options)
    if options.out is None:
        print(export(pruning, options.to, blocks=blocks, model=options.model), end="")
    else:
        write_export(pruning, options.to, options.out, blocks=blocks, model=options.model)


def _blocks(options: argparse.Namespace) -> int | None:
    if options.to != "mergekit":
        return options.layers
    from pyprune.models.demo import DEMO_MODEL
    from pyprune.models.original_sizes import OriginalSizes

    model = options.model
    if model is None:
        raise InputError("export --to mergekit: --model is expected: a Hugging Face directory or hub name")
    if model == DEMO_MODEL or model.startswith("shape:") or model.endswith(".gguf"):
        raise InputError(
            f"--model {model}: mergekit reads Hugging Face checkpoints; a directory or hub name is expected"
        )
    if options.layers is not None:
        return options.layers
    try:
        return OriginalSizes.of(loaded_sizes(model, None)).blocks
    except InputError as error:
        raise InputError(f"{error}. With --layers N, its number of blocks, it is not looked at") from None
