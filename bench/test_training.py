"""LoRA training of SmolLM2-135M without a fifth of its blocks: ours against peft with plain transformers.

`-k fp32` or `-k bf16` picks the precision. Both sides are transformers' Trainer around peft's model with the same
adapters, samples in the same order, batch, optimizer and rates; ours has fused loss, adapters and attention. Beside the
tokens a second stand the losses of the first steps, with the same dropout masks on both sides (peft's own masks are
other random numbers), and the share of each operator in a step (torch.profiler).
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import pyprune
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune.ops import native
from pyprune.ops.dropout import kept
from pyprune.retraining.adapters import ADAPTER, trainable
from pyprune.retraining.attention import fuse_attention
from pyprune.retraining.lora_linear import drawn_seed, fuse_adapters
from pyprune.retraining.objectives import NextToken
from pyprune.retraining.objectives.objective import transformers_model
from pyprune.retraining.samples import collated
from pyprune.retraining.settings import Settings
from pyprune.retraining.texts import text_samples
from pyprune.retraining.trainer import Session

OURS, PEFT = "pyprune", "peft"
REMOVED = (5, 12, 14, 17, 18, 21)
ROUNDS = 5
STEPS = 2  # of a timed run
COMPARED = 20  # steps whose losses are compared
TOP = 12  # operators of the profile
LARGEST = {"fp32": 2e-4, "bf16": 2e-2}
"""Relative differences of two losses that rounding explains: steps of training multiply those of the first."""


class SameMask(torch.nn.Module):
    """Dropout for peft's layers with the masks that our layers draw."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        keep = kept(drawn_seed(), x.shape[:-1].numel(), x.shape[-1], self.p).view(x.shape)
        return x * keep / (1 - self.p)


class PlainTrainer(Trainer):
    """Trainer as it is, over samples in their order; it notes each loss."""

    def __init__(self, model: Any, settings: Settings, samples: list[Any], folder: str) -> None:
        self.samples, self.losses = samples, []
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=settings.micro_batch, max_steps=settings.steps,
            gradient_accumulation_steps=settings.batch // settings.micro_batch, bf16=settings.precision == "bf16",
            use_cpu=True, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
        rate = partial(settings.rate, total=settings.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(min(step, settings.steps - 1)))
        super().__init__(model=model, args=arguments, optimizers=(optimizer, schedule))
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.samples, batch_size=self.args.train_batch_size, collate_fn=partial(collated, pad=0))

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


class Sides:
    """Both sides' models with the same adapters, and the samples."""

    def __init__(self, decoder: Any, precision: str, dropout: float) -> None:
        self.settings = Settings(
            precision=precision, steps=STEPS, batch=4, warmup_steps=0, learning_rate=1e-3, lora_dropout=dropout
        )
        pruned = pyprune.apply(decoder, pyprune.Pruning(blocks=REMOVED))
        self.samples, _ = text_samples(pruned, "demo:lambada", self.settings.cutoff)
        torch.manual_seed(0)
        self.models = {PEFT: trainable(pruned, self.settings)}
        self.models[OURS] = copy.deepcopy(self.models[PEFT])
        fuse_adapters(self.models[OURS], ADAPTER)
        fuse_attention(transformers_model(self.models[OURS]))

    def give_peft_our_masks(self) -> None:
        for module in self.models[PEFT].modules():
            if isinstance(getattr(module, "lora_dropout", None), torch.nn.ModuleDict) and self.settings.lora_dropout:
                module.lora_dropout[ADAPTER] = SameMask(self.settings.lora_dropout)

    def run(self, side: str, steps: int = STEPS) -> list[float]:
        """Some steps of a new training of a side's model; the losses."""
        settings = dataclasses.replace(self.settings, steps=steps)
        session = Session(
            self.models[side], NextToken(), settings, self.samples, [], 0, settings.precision == "bf16", NextToken(),
            None, lambda done, total, loss: None,
        )  # fmt: skip
        if side == OURS:
            return [point.loss for point in session.run() if point.loss is not None]
        ordered = [self.samples[place] for place in session.places()]
        with tempfile.TemporaryDirectory() as folder:
            trainer = PlainTrainer(self.models[side], settings, ordered, folder)
            if any(isinstance(module, SameMask) for module in self.models[side].modules()):
                trainer.add_callback(_seeding(session))
            trainer.train()
        return trainer.losses


def _seeding(session: Session) -> Any:
    """A callback that seeds each step as ours does."""

    class Seeding(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            session.begin_step()
            session.step += 1

    return Seeding()


def shares(run: Any) -> dict[str, float]:
    """The operators' shares of their time in all, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    events = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(events.values())
    largest = sorted(events, key=lambda name: -events[name])[:TOP]
    return {name: round(events[name] / total, 4) for name in largest}


@pytest.mark.parametrize("dropout", [0.05, 0.0], ids=["dropout", "no-dropout"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_tokens_a_second(interleaved, benchmark, table, smollm2, precision: str, dropout: float):
    decoder = smollm2.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    sides = Sides(decoder, precision, dropout)
    seconds = interleaved({side: Side(partial(sides.run, side)) for side in (OURS, PEFT)}, ROUNDS)
    tokens = STEPS * sides.settings.batch * sides.settings.cutoff
    profiles = {side: shares(partial(sides.run, side, 1)) for side in (OURS, PEFT)}
    compared = Sides(decoder, precision, dropout)
    compared.give_peft_our_masks()
    losses = {side: compared.run(side, COMPARED) for side in (OURS, PEFT)}
    difference = max(abs(a - b) / b for a, b in zip(losses[OURS], losses[PEFT], strict=True))
    benchmark.extra_info.update(
        precision=precision, dropout=dropout, threads=torch.get_num_threads(), instruction_set=native.selected_isa(),
        tokens=tokens, losses=losses, largest_relative_difference=difference, profile=profiles,
        settings=sides.settings.to_dict(),
    )  # fmt: skip
    table(
        f"LoRA training, {decoder.name} without blocks {', '.join(map(str, REMOVED))}, {native.selected_isa()}",
        {
            "precision": precision,
            "dropout": str(dropout),
            **{f"{side}, tokens/s": f"{tokens / median(samples):.0f}" for side, samples in seconds.items()},
            FASTER: interval_text(benchmark.extra_info["ratio"][PEFT]),
            f"losses of {COMPARED} steps": f"{difference:.1e}",
        },
    )
    assert len(losses[OURS]) == len(losses[PEFT]) == COMPARED
    assert difference <= LARGEST[precision]
