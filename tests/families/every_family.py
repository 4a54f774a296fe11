"""Every family of causal models in transformers: which are scored and depth-pruned through their own layers.

    python -m tests.families.every_family [--out docs/reference/families_table.md] [MODEL_TYPE ...]

builds a small random model of each, compares the scores of all its blocks with one forward pass per block, removes a
block, saves, loads with plain transformers, compares and generates. The exit code is 1 when a score or a checkpoint is
wrong, not when a family is refused or cannot be built small.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

import pyprune
from pyprune.models.transformers_decoder import TransformersDecoder
from tests.families.shrunk import VOCAB, shrunk

SECONDS = 30
MOST_PARAMETERS = 120_000_000
TOLERANCE = 1e-4
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1}
_ALL_HEADS = {"num_key_value_heads": 4}
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "deepseek_v2": _ALL_HEADS,
    "deepseek_v32": _ALL_HEADS,
    "glm_moe_dsa": _ALL_HEADS,
    "granitemoehybrid": _MAMBA,
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "marian": {"decoder_vocab_size": VOCAB},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "qwen4_exp_text": {"head_dim": 16, "num_key_value_heads": 2, "num_attention_heads": 4},
    "rwkv": {"attention_hidden_size": 64},
    "xmod": {"default_language": "en_XX"},
}
"""What the names of fields do not tell."""


@dataclass
class Row:
    """One family's line of the table. `scores` and `checkpoint`: what was found, or the reason why not."""

    model_type: str
    name: str
    layers: str = ""
    scores: str = ""
    checkpoint: str = ""
    kind: str = "not built"
    wrong: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description="Every family of causal models in transformers.")
    parser.add_argument("--out", type=Path, help="Markdown file for the table (default: printed)")
    parser.add_argument("families", nargs="*", metavar="MODEL_TYPE", help="only these (default: all)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    rows = []
    for model_type, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        if not options.families or model_type in options.families:
            rows.append(examined(model_type, name))
            print(
                f"{model_type}: {rows[-1].kind}; {rows[-1].scores}; {rows[-1].checkpoint}", file=sys.stderr, flush=True
            )
    text = page(rows)
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")
    return int(any(row.wrong for row in rows))


def examined(model_type: str, name: str) -> Row:
    """One family's line."""
    row = Row(model_type, name)
    try:
        with _limited(SECONDS):
            model = built(model_type)
    except Exception as error:
        row.scores = _line(error)
        return row
    try:
        with _limited(SECONDS):
            _score(row, model)
            if row.kind == "passes":
                _prune(row, model)
    except _TooSlow as error:
        row.kind, row.scores = "not built", f"{error} for one model: as plain PyTorch runs it"
    except Exception as error:
        row.kind, row.wrong, row.scores = "fails", True, _line(error)
    return row


def built(model_type: str) -> Any:
    """A small random model of the family that runs."""
    reasons = []
    for way in ("fixed", "divided"):
        try:
            kind = CONFIG_MAPPING[model_type]
            config = kind.from_dict(shrunk(kind().to_dict(), way, EXTRA.get(model_type, {})))
            if getattr(config, "is_encoder_decoder", False):
                config.is_encoder_decoder = False
            if "is_decoder" in config.to_dict():
                config.is_decoder = True
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if size > MOST_PARAMETERS:
                raise ValueError(f"{size:,} parameters are too many")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            _randomise(model)
            with torch.no_grad():
                model(input_ids=_ids())
            return model
        except _TooSlow:
            raise
        except Exception as error:
            reasons.append(error)
    raise reasons[0]


def _randomise(model: nn.Module) -> None:
    """Weights of matrices normal with the variance that keeps activations' size; norms and biases off their neutral
    values."""
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if isinstance(module, (nn.Linear, Conv1D)) and parameter.dim() == 2:
                    fan_in = parameter.shape[0 if isinstance(module, Conv1D) else 1]
                    parameter.normal_(std=fan_in**-0.5)
                elif isinstance(module, nn.Embedding):
                    parameter.normal_(std=0.5)
                elif parameter.dim() == 1 and parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.05)


def _score(row: Row, model: Any) -> None:
    """Compare the scores of all blocks with the naive loop."""
    try:
        decoder = TransformersDecoder.of(model)
    except pyprune.InputError as error:
        row.kind, row.scores = "refused", _line(error).removeprefix(f"{type(model).__name__}: ")
        return
    row.layers = decoder.structure.layers_name
    ids = _ids()
    scores = pyprune.score(decoder, ids)
    layers = model.get_submodule(row.layers)
    worst = abs(scores.baseline / _perplexity(model, ids) - 1)
    for layer, call, value in zip(layers, decoder.structure.calls, scores.values, strict=True):
        own = layer.__dict__.get("forward")
        layer.forward = _returning_its_input(call)
        try:
            worst = max(worst, abs(value / _perplexity(model, ids) - 1))
        finally:
            del layer.forward
            if own is not None:
                layer.forward = own
    row.kind, row.scores = "passes", f"{worst:.0e}"
    if not worst < TOLERANCE:
        row.kind, row.wrong = "fails", True


def _returning_its_input(call: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        where, key = call.hidden
        x = (args, kwargs)[where][key]
        return (x, *[None] * (call.returned - 1)) if call.returned else x

    return forward


def _prune(row: Row, model: Any) -> None:
    """Remove a block, save, load with plain transformers, compare and generate."""
    ids = _ids()
    decoder = TransformersDecoder.of(model)
    reasons = []
    for index in (1, 2, 3, 0):
        if index >= len(decoder.blocks):
            continue
        try:
            smaller = pyprune.apply(decoder, pyprune.Pruning(blocks=[index]))
        except pyprune.InputError as error:
            reasons.append(_line(error).partition(": ")[2])
            continue
        with tempfile.TemporaryDirectory() as folder:
            smaller.save(f"{folder}/smaller")
            kind = AutoModelForCausalLM if type(model.config) in AutoModelForCausalLM._model_mapping else type(model)
            plain = kind.from_pretrained(f"{folder}/smaller", dtype=torch.float32).eval()
        with torch.no_grad():
            apart = float((plain(input_ids=ids).logits - smaller.model(input_ids=ids).logits).abs().max())
        if not apart < 1e-4:
            row.checkpoint, row.wrong, row.kind = f"loads with other logits ({apart:.0e})", True, "fails"
            return
        try:
            plain.generate(ids, max_new_tokens=3, do_sample=False)
        except Exception as error:
            try:
                model.generate(ids, max_new_tokens=3, do_sample=False)
            except Exception:
                row.checkpoint = "loads; generation fails, as the whole model's does"
                return
            row.checkpoint, row.wrong, row.kind = f"loads, but cannot generate: {_line(error)}", True, "fails"
            return
        row.checkpoint = "loads and generates"
        if reasons:
            row.checkpoint += f" without block {index}; not without block 1: {reasons[0]}"
        return
    row.checkpoint = f"refused: {reasons[0]}"


def page(rows: list[Row]) -> str:
    """The table as Markdown."""
    counts = {kind: sum(row.kind == kind for row in rows) for kind in ("passes", "refused", "not built", "fails")}
    lines = [
        "# Families of transformers that are run through their own layers",
        "",
        "Written by `make test-families`; not edited by hand. "
        f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}. A small random model of"
        " each family in float32: the largest relative difference of its block scores from one forward pass per block,"
        " and whether its checkpoint without a block loads in plain transformers, gives the same logits and generates.",
        "",
        f"{counts['passes']} families pass, {counts['refused']} are refused with a reason, {counts['not built']} could"
        f" not be built small by the script, {counts['fails']} fail.",
        "",
    ]
    for kind, heads in (
        ("passes", ("model_type", "layers", "difference", "depth-pruned checkpoint")),
        ("fails", ("model_type", "layers", "difference or error", "depth-pruned checkpoint")),
        ("refused", ("model_type", "class", "reason")),
        ("not built", ("model_type", "class", "why the script could not build it")),
    ):
        chosen = [row for row in rows if row.kind == kind]
        if not chosen:
            continue
        lines += [f"## {kind.capitalize()}", "", _cells(heads), _cells(["---"] * len(heads))]
        for row in chosen:
            if kind in ("passes", "fails"):
                lines.append(_cells([f"`{row.model_type}`", f"`{row.layers}`", row.scores, row.checkpoint]))
            else:
                lines.append(_cells([f"`{row.model_type}`", row.name, row.scores]))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cells(values: Any) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"


def _ids() -> torch.Tensor:
    return torch.randint(3, VOCAB - 1, (2, 13), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _perplexity(model: Any, ids: torch.Tensor) -> float:
    logits = model(input_ids=ids, **({"use_cache": False})).logits[:, :-1].double()
    return math.exp(float(F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])))


class _TooSlow(Exception):
    pass


@contextmanager
def _limited(seconds: int) -> Any:
    def stop(*_: object) -> None:
        raise _TooSlow(f"more than {seconds} seconds")

    signal.signal(signal.SIGPROF, stop)  # of this process's own time, whatever else the machine does
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _line(error: BaseException) -> str:
    """An error as one line, without addresses and paths."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:220]


if __name__ == "__main__":
    sys.exit(main())
