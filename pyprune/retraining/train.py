"""`retrain`: gradient steps through a whole model, LoRA's or all parameters', with our own checkpoints and saving."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from pyprune.errors import InputError
from pyprune.files import remove_parts, require_free_directory, whole_directory, write_bytes, write_json, write_text
from pyprune.models import as_decoder
from pyprune.models.decoder import Decoder
from pyprune.models.load_any import AnyDecoder, as_any_decoder
from pyprune.retraining.adapters import (
    ADAPTER,
    WEIGHTS,
    first_trained,
    merged,
    precision_of,
    require_extra,
    save_adapters,
    trainable,
)
from pyprune.retraining.attention import fuse_attention
from pyprune.retraining.clean_texts import DRAWN, Drawn, cleaned, require_clean
from pyprune.retraining.curve import Point, csv_text
from pyprune.retraining.instructions import instruction_samples
from pyprune.retraining.journal_path import journal_path
from pyprune.retraining.lora_linear import fuse_adapters
from pyprune.retraining.objectives import NextToken, Objective
from pyprune.retraining.objectives.behind_frozen import NextTokenBehindFrozen
from pyprune.retraining.objectives.distillation import Distillation, distillation_options
from pyprune.retraining.objectives.objective import transformers_model
from pyprune.retraining.other_families import pad_token
from pyprune.retraining.samples import Sample
from pyprune.retraining.settings import Settings
from pyprune.retraining.state import StateFile
from pyprune.retraining.texts import text_samples
from pyprune.retraining.trainer import Session, kept_random_state
from pyprune.scoring.calibration.demonstrations import EVALUATION, PREFIX
from pyprune.scoring.calibration.sources import Source, read_source

HELD_OUT_SHARE, HELD_OUT_MOST = 20, 64


@dataclass(frozen=True)
class Retrained:
    """A retrained model, its curve, and what it was trained with, as JSON data: `settings`, the texts' names, `samples`
    of the text or the instructions, and `dropped_samples`, without a reply within the cutoff."""

    decoder: AnyDecoder
    curve: list[Point]
    settings: dict[str, Any]

    def held_out(self) -> tuple[float, float] | None:
        """Mean negative log-likelihood on the held-out samples before and after; None where none are held out."""
        first, last = self.curve[0].held_out, self.curve[-1].held_out
        return None if first is None or last is None else (first, last)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        last, held_out = self.curve[-1], self.held_out()
        return {
            **self.settings,
            "trained_steps": last.step,
            "trained_tokens": last.tokens,
            "seconds": last.seconds,
            "loss": last.loss,
            "held_out_loss": None if held_out is None else {"before": held_out[0], "after": held_out[1]},
        }

    def save(self, directory: str | os.PathLike[str], files: Mapping[str, bytes] | None = None) -> None:
        """Write the model with `retraining.json`, `curve.csv` and other files beside it; the directory appears whole or
        not at all."""
        with whole_directory(directory) as scratch:
            self.decoder.save(scratch)
            write_json(scratch / "retraining.json", self.to_dict())
            write_text(scratch / "curve.csv", csv_text(self.curve))
            for name, content in (files or {}).items():
                write_bytes(scratch / name, content)


def retrain(
    model: Any,
    *,
    text: Any = None,
    instructions: Any = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> AnyDecoder:
    """The model retrained on a text or on instructions, merged, with its pruning record and original indices.

    model: what `load_any` takes; it is unchanged to the bit. text: whatever `calibration` takes, in windows of `cutoff`
    tokens; or instructions: a file of instructions or conversations, of which the replies are learnt
    (`retraining.instructions`). out: a directory to save to. options: those of `retrain_with_report`, and the fields of
    `Settings`: steps, epochs, lora_rank, full, precision, seed and so on.
    InputError for values that cannot be had, a text that is too short, and where peft is not installed.
    """
    return retrain_with_report(model, text=text, instructions=instructions, out=out, **options).decoder


def retrain_with_report(
    model: Any,
    *,
    text: Any = None,
    instructions: Any = None,
    field: str | None = None,
    eval_text: Any = None,
    calibrated: Sequence[Drawn] = DRAWN,
    tokenizer: Any = None,
    objective: Objective | None = None,
    distill_from: Any = None,
    distill_loss: str | None = None,
    distill_top_k: int | None = None,
    distill_weight: float | None = None,
    temperature: float | None = None,
    out: str | os.PathLike[str] | None = None,
    adapters: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    progress: Any = lambda done, total, loss: None,
    **options: Any,
) -> Retrained:
    """`retrain`, with its curve.

    field: the key of JSON lines, or column of a dataset, that holds the text. eval_text: held-out text; without one
    `demo:boolq` where the text is a demonstration, else some samples are kept from training. calibrated: the draws from
    `demo:lambada` whose documents are not trained on (`clean_texts`). tokenizer: the model's own when None.
    objective: what is made small (the next token's loss by default); resume knows it by its name and its attributes
    that are numbers or strings. distill_from: the unpruned model, or what `load` takes, that teaches; distill_loss,
    distill_top_k, distill_weight, temperature: kind, top_k, weight and temperature of `Distillation`. adapters: a
    directory for LoRA's adapters alone, as peft writes them. resume: keep the state in a file, `out` with `.journal`
    behind it or of this name, and go on from one that is there; the result is then the one of an undisturbed run, and
    the file is removed when `out` is written.
    progress: called with (micro-batches done, in all, loss of the last step).
    """
    settings = checked_settings(options)
    taught = distillation_options(distill_from, objective, {
        "kind": distill_loss, "top_k": distill_top_k, "weight": distill_weight, "temperature": temperature,
    })  # fmt: skip
    require_extra()
    if (text is None) == (instructions is None):
        raise InputError("retrain: one of text and instructions is expected")
    require_clean(text)
    require_one_process("retrain")
    if eval_text is None and isinstance(text, str) and text.startswith(PREFIX):
        eval_text = EVALUATION
    state_path = journal_path("retrain", out, resume)
    require_outputs(out, adapters, settings, state_path)
    decoder = as_any_decoder(model)
    if isinstance(decoder, Decoder):
        decoder.require_weights()
    require_first_device(decoder.device)
    require_cutoff(decoder, settings.cutoff)  # before texts are read
    first = first_trained(decoder, settings)
    if taught is not None:
        if not isinstance(decoder, Decoder):
            raise InputError(
                f"retrain: distill_from: {decoder.name} is of another family; Llama, Mistral, Qwen2 or Qwen3 is"
                " expected"
            )
        teacher = as_decoder(distill_from)
        objective = Distillation(teacher, decoder, **taught)
    judged = None if eval_text is None else read_source(eval_text)
    samples, names, counts = training_samples(
        decoder, text, instructions, settings.cutoff, field=field, calibrated=calibrated, tokenizer=tokenizer,
        held_out=judged,
    )  # fmt: skip
    if judged is not None:
        held_out: list[Sample] = []
        names["eval_text"] = judged.name
        if settings.held_out != 0:
            held_out, _ = text_samples(decoder, judged, settings.cutoff, tokenizer=tokenizer)
            held_out = held_out[: HELD_OUT_MOST if settings.held_out is None else settings.held_out]
    else:
        samples, held_out = _split(samples, settings)
    subject = {
        "model": decoder_digest(decoder), "samples": samples_digest(samples), "held_out": samples_digest(held_out),
        **names, **settings.to_dict(), "objective": _described(objective), "distillation": taught,
    }  # fmt: skip
    del subject["save_seconds"]
    if taught is not None:
        subject["teacher"] = decoder_digest(teacher)
    with kept_random_state():
        torch.manual_seed(settings.seed)
        network = trainable(decoder, settings)
    if not settings.full:
        fuse_adapters(network, ADAPTER)
    fuse_attention(transformers_model(network))
    next_token: NextToken
    if isinstance(decoder, Decoder):
        next_token = NextTokenBehindFrozen(decoder=decoder) if first else NextToken()
        pad = decoder.pad_token_id()
    else:
        next_token, pad = NextToken(decoder.structure.logits, any_family=True), pad_token(decoder)
    state = None if state_path is None else StateFile(state_path, subject)
    precision = precision_of(decoder, settings)
    session = Session(
        network, objective or next_token, settings, samples, held_out, pad, precision == "bf16", next_token, state,
        progress,
    )  # fmt: skip
    curve = session.run()
    trained_with = {**names, **counts, **settings.to_dict(), "precision": precision}
    if taught is not None:
        trained_with["distillation"] = {"teacher": teacher.name, **taught}
    result = Retrained(merged(decoder, network), curve, trained_with)
    if adapters is not None:
        save_adapters(network, adapters)
    if out is not None:
        result.save(out)
    if session.state is not None and out is not None:
        session.state.delete()
    return result


def training_samples(
    decoder: AnyDecoder, text: Any, instructions: Any, cutoff: int, *, field: str | None = None,
    calibrated: Sequence[Drawn] = DRAWN, tokenizer: Any = None, held_out: Source | None = None,
) -> tuple[list[Sample], dict[str, str], dict[str, int]]:  # fmt: skip
    """The samples of the text or of the instructions, its name, and how many samples it has and how many were dropped,
    as JSON data; held_out: the text that the model is judged by, the other arguments as in `retrain_with_report`.
    InputError for a text without samples."""
    if instructions is not None:
        read = instruction_samples(decoder, instructions, cutoff, tokenizer=tokenizer)
        return read.samples, {"instructions": read.name}, _counts(read.samples, read.dropped)
    clean = cleaned(decoder, text, calibrated, tokenizer, held_out)
    samples, name = text_samples(decoder, clean, cutoff, field=field, tokenizer=tokenizer)
    return samples, {"text": name}, _counts(samples, 0)


def _counts(samples: Sequence[Sample], dropped: int) -> dict[str, int]:
    return {"samples": len(samples), "dropped_samples": dropped}


def checked_settings(options: dict[str, Any]) -> Settings:
    """The settings; InputError for a name that is none, and for LoRA's where all parameters train."""
    known = Settings.__dataclass_fields__
    for name, value in options.items():
        if name not in known:
            raise InputError(f"retrain: unknown option {name!r}; {', '.join(known)} are accepted")
        if name.startswith("lora_") and options.get("full"):
            raise InputError(f"retrain: {name} {value}: full training has no LoRA; one of {name} and full is expected")
    return Settings(**options)


def require_one_process(what: str) -> None:
    """InputError under torchrun, for `what` trains."""
    if "RANK" in os.environ:
        raise InputError(f"{what}: trains in one process; torchrun has started several")


def require_outputs(
    out: str | os.PathLike[str] | None, adapters: str | os.PathLike[str] | None, settings: Settings, state: Path | None
) -> None:
    """Raise InputError where the directories of the results cannot be written.

    state: the file of a run that resumes: then what was half written is removed, and where the file is there, the
    adapters may have been written already (`save_adapters`).
    """
    if adapters is not None and settings.full:
        raise InputError(f"retrain: adapters {adapters}: full training has none")
    if adapters is not None and out is not None:
        one, other = Path(adapters).resolve(), Path(out).resolve()
        if one == other or one in other.parents or other in one.parents:
            raise InputError(f"retrain: adapters {adapters}: a directory apart from {out} is expected")
    for directory in (out, adapters):
        if directory is not None:
            may_be_written = directory is adapters and state is not None and state.exists()
            if not (may_be_written and (Path(directory) / WEIGHTS).is_file()):
                require_free_directory(directory)
            if state is not None:
                remove_parts(directory)


def decoder_digest(decoder: AnyDecoder) -> str:
    """SHA-256 of a decoder's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in decoder.tensors():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 of samples' ids and labels."""
    digest = hashlib.sha256()
    for sample in samples:
        for part in (sample.input_ids, sample.labels):
            digest.update(numpy.ascontiguousarray(part, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()


def _described(objective: Objective | None) -> str:
    """What identifies an objective: its name, and those of its attributes that are numbers, strings or None."""
    settings = {
        name: value
        for name, value in sorted(getattr(objective, "__dict__", {}).items())
        if not name.startswith("_") and (value is None or isinstance(value, int | float | str))
    }
    name = getattr(objective, "__qualname__", type(objective).__qualname__)
    return f"{name} {json.dumps(settings)}" if settings else name


def require_cutoff(decoder: AnyDecoder, cutoff: int) -> None:
    """Raise InputError for samples that are longer than the model's context."""
    if cutoff > decoder.max_positions:
        raise InputError(
            f"retrain: cutoff {cutoff}: at most {decoder.name}'s context, {decoder.max_positions}, is accepted"
        )


def require_first_device(device: torch.device) -> None:
    """Raise InputError for a GPU on which transformers' Trainer does not run."""
    if device.type == "cuda" and device.index not in (None, 0):
        raise InputError(f"retrain: device {device}: cuda:0 is expected (CUDA_VISIBLE_DEVICES chooses the GPU)")


def _split(samples: list[Sample], settings: Settings) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples, those drawn by the seed."""
    count = settings.held_out
    if count is None:
        count = min(HELD_OUT_MOST, len(samples) // HELD_OUT_SHARE)
    if count >= len(samples):
        raise InputError(f"retrain: held_out {count}: the text has {len(samples)} samples; fewer are expected")
    chosen = set(numpy.random.default_rng([settings.seed, len(samples)]).permutation(len(samples))[:count].tolist())
    training = [sample for place, sample in enumerate(samples) if place not in chosen]
    return training, [samples[place] for place in sorted(chosen)]
