"""`repair`: give a pruned model back what forward passes, or short local fits, can: no shape changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models import as_decoder
from pyprune.models.decoder import Decoder, Linear
from pyprune.models.pruning import Pruning, recorded
from pyprune.progress import Progress
from pyprune.pruning.apply import apply
from pyprune.pruning.index_map import index_map
from pyprune.recovery.blockwise import Training, blockwise
from pyprune.recovery.fitting import HELD_OUT_EVERY, Fitting, is_held_out
from pyprune.recovery.journal import BlockJournal
from pyprune.recovery.linear import cosine_at_cut, linear_at_cut
from pyprune.recovery.mean_update import mean_update
from pyprune.recovery.normal_equations import RIDGES, Fit
from pyprune.recovery.refit import refit_at_cut, refit_down, refit_outputs
from pyprune.recovery.scale import divided, magnitude_ratio
from pyprune.recovery.streams import Stage, Streams, sublayers_of
from pyprune.recovery.token_weights import WEIGHTINGS
from pyprune.recovery.width import flap_bias, stat
from pyprune.scoring.distributed import process_group
from pyprune.scoring.journal import journal_subject
from pyprune.scoring.perplexity import check_samples, perplexity

FITS: dict[str, Callable[[Stage, Fitting], Fit | None]] = {
    "linear": linear_at_cut,
    "linear-cosine": cosine_at_cut,
    "refit": refit_at_cut,
    "refit-all": refit_down,
    "refit-all-o": refit_outputs,
}
METHODS = ("auto", "mean-update", "scale", *FITS, "flap-bias", "stat", "blockwise")
AT_CUT = ("mean-update", "scale", "linear", "linear-cosine", "refit")
"""What folds a removed run into the projection before it, and so needs one."""
WIDTH_ONLY = ("flap-bias", "stat")
CHOICE = ("scale", "linear", "refit", "refit-all-o")
"""What `auto` chooses from for blocks or sublayers that went."""
WIDTH_CHOICE = ("flap-bias", "stat", "refit-all-o")
"""What it chooses from where only heads or neurons went."""


@dataclass(frozen=True)
class Repaired:
    """A repaired model, by which method, and what the held-out windows say.

    perplexities: of the original, the pruned and the repaired model on the held-out windows of the calibration set
    (None where none is held out). tried: the repaired perplexity of each method that `auto` tried. fits: of each
    projection or block, the relative squared error of its output on the held-out windows before and after, and the
    ridge.
    """

    decoder: Decoder
    method: str
    perplexities: tuple[float, float, float] | None
    tried: dict[str, float]
    fits: list[dict[str, Any]]

    @property
    def harms(self) -> bool:
        """Whether the repaired model is worse than the pruned one on the held-out windows."""
        return self.perplexities is not None and self.perplexities[2] > self.perplexities[1]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("original", "pruned", "repaired")
        held_out = None if self.perplexities is None else dict(zip(names, self.perplexities, strict=True))
        return {
            "method": self.method,
            "held_out_perplexity": held_out,
            "harms": self.harms,
            "tried": self.tried,
            "fits": self.fits,
        }


def repair(original: Any, pruned: Any, input_ids: Tensor, method: str = "auto", **options: Any) -> Decoder:
    """The pruned model with what was removed folded, as far as it goes, into the weights that stay.

    original: the unpruned model. pruned: a `Pruning` of it, or a decoder with its record. input_ids `[S, T]`:
    calibration; every eighth window is held out, to choose the ridge and the method. method: one of `METHODS`; "auto"
    is the best of several on the held-out windows, or the pruned model itself where none is better. options: those of
    `repair_with_report`. Shapes, record and `index_map` stay, `original` is unchanged; "mean-update" and "flap-bias"
    add biases, which the record notes as compensation.
    Raises InputError for an unknown method or option, a model that was not made from the original, a removed run at
    block 0 for methods that fold it into what stands before, and tokens too few for the matrices without a ridge.
    """
    return repair_with_report(original, pruned, input_ids, method, **options).decoder


def repair_with_report(
    original: Any,
    pruned: Any,
    input_ids: Tensor,
    method: str = "auto",
    *,
    ridge: float | str = "auto",
    weighting: str = "relative",
    first: float = 1.0,
    exact: bool = False,
    steps: int = Training.steps,
    rate: float = Training.rate,
    seed: int = 0,
    memory: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    distributed: bool | None = None,
    progress: Progress = lambda done, total: None,
) -> Repaired:
    """`repair`, with what the held-out windows say.

    ridge: "auto" tries `normal_equations.RIDGES` on the held-out windows; a number from 0 is used as it is. weighting,
    first: `token_weights`. exact: products in float64. steps, rate, seed: of "blockwise". memory: bytes for states;
    more lies in a temporary file (default: half of what is free). resume: folder of a journal of finished blocks, for
    "blockwise". distributed: as in `score`; the closed forms share the samples. progress: (stages done, in all).
    """
    original = as_decoder(original)
    check_options(method, ridge, weighting, first, steps, rate)
    pruned = _pruned(original, pruned)
    ids, _ = check_samples(original, input_ids, None)
    _require_samples(len(ids), method, ridge)
    _require_foldable(original, pruned, method)
    group = process_group(original.device, distributed)
    if group.size > 1 and method == "blockwise":
        raise InputError("repair: method blockwise: runs in one process; the closed forms share their samples")
    ridges = RIDGES if ridge == "auto" else (float(ridge),)
    numbers = tuple(range(group.rank, len(ids), group.size))
    fitting = Fitting(ridges, weighting, first, exact, numbers, group)
    training = Training(steps=steps, rate=rate, seed=seed)

    def repaired_by(name: str) -> tuple[Decoder, list[dict[str, Any]]]:
        if name == "blockwise":
            journal = None if resume is None else BlockJournal(resume, _subject(original, pruned, ids, training))
            decoder, fits = blockwise(original, pruned, ids, training, memory, journal, progress)
            return decoder, [{"block": f.block, "kind": "block", "before": f.before, "after": f.after} for f in fits]
        return _closed_form(original, pruned, ids[list(numbers)], name, fitting, memory, progress)

    held_out = ids[[sample for sample in range(len(ids)) if is_held_out(sample)]]
    before = None
    if len(held_out):
        before = perplexity(original, held_out), perplexity(pruned, held_out)
    if method != "auto":
        decoder, fits = repaired_by(method)
        return Repaired(decoder, method, _with(before, decoder, held_out), {}, fits)
    assert before is not None  # auto requires held-out windows
    best = Repaired(pruned, "none", (*before, before[1]), {}, [])
    tried: dict[str, float] = {}
    for name in WIDTH_CHOICE if _only_narrowed(original, pruned) else CHOICE:
        if name in AT_CUT and _leading_run(original, pruned):
            continue
        decoder, fits = repaired_by(name)
        tried[name] = perplexity(decoder, held_out)
        if tried[name] < best.perplexities[2]:  # type: ignore[index]  # set above
            best = Repaired(decoder, name, (*before, tried[name]), {}, fits)
    return replace(best, tried=tried)


def check_options(
    method: str, ridge: float | str, weighting: str = "relative", first: float = 1.0, steps: int = 1, rate: float = 1.0
) -> None:
    """Raise InputError for options that cannot be had, before anything is loaded."""
    if method not in METHODS:
        raise InputError(f"repair: method {method!r}: {', '.join(METHODS)} are accepted")
    number = isinstance(ridge, (int, float)) and not isinstance(ridge, bool) and 0 <= ridge < float("inf")
    if ridge != "auto" and not number:
        raise InputError(f"repair: ridge {ridge!r}: auto or a finite number from 0 is expected")
    if weighting not in WEIGHTINGS:
        raise InputError(f"repair: weighting {weighting!r}: {', '.join(WEIGHTINGS)} are accepted")
    if not 0 <= first < float("inf"):
        raise InputError(f"repair: first {first!r}: a finite weight from 0 is expected")
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"repair: steps {steps!r}: a whole number from 1 is expected")
    if not 0 < rate < float("inf"):
        raise InputError(f"repair: rate {rate!r}: a finite number above 0 is expected")


@torch.inference_mode(False)
def _closed_form(
    original: Decoder, pruned: Decoder, ids: Tensor, method: str, fitting: Fitting, memory: int | None,
    progress: Progress,
) -> tuple[Decoder, list[dict[str, Any]]]:  # fmt: skip
    streams = Streams(original, pruned, ids, memory, keeps_original_inputs=method in WIDTH_ONLY)
    total = sum(1 for _ in sublayers_of(pruned.sizes().blocks))
    fits: list[dict[str, Any]] = []
    added: dict[str, Tensor] = {}
    factor = 1.0
    with torch.no_grad():
        for done, stage in enumerate(streams.stages()):
            fit: Fit | None = None
            if method in FITS:
                fit = FITS[method](stage, fitting)
            elif method == "stat":
                fit = stat(stage, fitting)
            elif method == "scale":
                if factor != 1.0:
                    stage.projection = divided(stage.projection, factor)
                factor = magnitude_ratio(stage, fitting) or factor
            else:
                bias = mean_update(stage, fitting) if method == "mean-update" else flap_bias(stage, fitting)
                if bias is not None:
                    name = f"blocks.{stage.place[0]}.{'o' if stage.place[1] == 'mha' else 'down'}.bias"
                    added[name] = bias
                    stage.projection = _biased(stage.projection, bias)
            if fit is not None:
                block, kind = stage.place
                fits.append(
                    {"block": block, "kind": kind, "ridge": fit.ridge, "before": fit.before, "after": fit.after}
                )
            progress(done, total)
    progress(total, total)
    if added:
        return apply(pruned, Pruning(compensation=added, made_by=f"repair {method}")), fits  # type: ignore[arg-type]  # validated there
    return streams.result(), fits


def _biased(linear: Linear, bias: Tensor) -> Linear:
    """As `apply` adds it: float32 sums, rounded once."""
    total = bias.float() if linear.bias is None else bias.float() + linear.bias
    return Linear(linear.weight, total.to(linear.weight.dtype))


def _with(before: tuple[float, float] | None, decoder: Decoder, held_out: Tensor) -> tuple[float, float, float] | None:
    return None if before is None else (*before, perplexity(decoder, held_out))


def _pruned(original: Decoder, pruned: Any) -> Decoder:
    """The pruned decoder; InputError unless it was made from the original."""
    if isinstance(pruned, Pruning):
        if not pruned:
            raise InputError("repair: the pruning removes nothing; a pruning or a pruned model is expected")
        return apply(original, pruned)
    decoder = as_decoder(pruned)
    if decoder.pruning is None:
        raise InputError(f"{decoder.name}: has no pruning record; a model that pyprune pruned and saved is expected")
    embedding, other = original.embedding, decoder.embedding
    if embedding.shape != other.shape or not torch.equal(embedding.to(other.dtype), other.to(embedding.device)):
        raise _not_of(decoder, original, "its embedding differs")
    if recorded(original).blocks and not set(recorded(original).blocks) <= set(decoder.pruning.blocks):
        raise _not_of(decoder, original, "the original lacks blocks that it has")
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if original.config.get(key) != decoder.config.get(key):
            raise _not_of(decoder, original, f"{key} {decoder.config.get(key)}, not {original.config.get(key)}")
    present = dict(sublayers_of(original.sizes().blocks))
    for place, _ in sublayers_of(decoder.sizes().blocks):
        if place not in present:
            raise _not_of(decoder, original, f"the original lacks {place[1]} of block {place[0]}")
    for block, held in zip(index_map(decoder), decoder.sizes().blocks, strict=True):
        if held.mha is not None and held.mha.heads != len(block.heads or ()):
            raise _not_of(decoder, original, f"{held.mha.heads} heads in block {block.index}, not as its record says")
        if held.ffn is not None and held.ffn.width < len(block.neurons or ()):
            raise _not_of(decoder, original, f"{held.ffn.width} neurons in block {block.index}, not as its record says")
    return decoder


def _not_of(pruned: Decoder, original: Decoder, reason: str) -> InputError:
    return InputError(f"{pruned.name}: was not pruned from {original.name}: {reason}")


def _require_samples(samples: int, method: str, ridge: float | str) -> None:
    chooses = method == "auto" or method == "blockwise" or (method in (*FITS, "stat") and ridge == "auto")
    if chooses and samples < HELD_OUT_EVERY:
        raise InputError(
            f"repair: {samples} samples: every {HELD_OUT_EVERY}th is held out to choose by, so at least"
            f" {HELD_OUT_EVERY} are expected (or a ridge that is a number, and a method)"
        )


def _leading_run(original: Decoder, pruned: Decoder) -> bool:
    """Whether what stands first in the original is gone, so that nothing stands before it."""
    first = next(place for place, _ in sublayers_of(original.sizes().blocks))
    return first not in dict(sublayers_of(pruned.sizes().blocks))


def _only_narrowed(original: Decoder, pruned: Decoder) -> bool:
    of_original, of_pruned = (dict(sublayers_of(decoder.sizes().blocks)) for decoder in (original, pruned))
    return of_original.keys() == of_pruned.keys()


def _require_foldable(original: Decoder, pruned: Decoder, method: str) -> None:
    if method in AT_CUT and _leading_run(original, pruned):
        raise InputError(
            f"repair: method {method}: the removed run begins at block 0, and nothing stands before it to fold it"
            " into; refit-all, refit-all-o and blockwise mend it in later blocks"
        )
    if method in ("scale", "linear", "linear-cosine") and _only_narrowed(original, pruned):
        raise InputError(
            f"repair: method {method}: is for blocks or sublayers that went; only heads and neurons did"
            f" ({', '.join(WIDTH_CHOICE)} are for them)"
        )
    if method in WIDTH_ONLY and not _only_narrowed(original, pruned):
        raise InputError(
            f"repair: method {method}: is for heads and neurons that went; blocks or sublayers went too"
            " (refit-all-o is for both)"
        )


def _subject(original: Decoder, pruned: Decoder, ids: Tensor, training: Training) -> dict[str, Any]:
    work = f"repair blockwise {training}"
    return {
        "original": journal_subject(original, ids, None, work),
        "pruned": journal_subject(pruned, ids, None, work),
        "pruning": recorded(pruned).to_dict(),
    }
