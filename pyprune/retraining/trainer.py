"""transformers' Trainer around an objective, with an order of samples and random numbers that follow from seed and
step: so that a run that was ended goes on as if it had not been."""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pyprune.retraining.adapters import trained_parameters
from pyprune.retraining.curve import Point
from pyprune.retraining.objectives import NextToken, Objective
from pyprune.retraining.samples import Batch, Sample, collated, ordered
from pyprune.retraining.settings import Settings
from pyprune.retraining.state import StateFile
from pyprune.scoring.losses import IGNORED

TrainingProgress = Callable[[int, int, float], None]
"""Called with (micro-batches done, micro-batches in all, the loss of the last step)."""

ADVICE = "a smaller learning rate, or precision fp32, may help"


class Session:
    """One training of a model: its samples, its optimizer, what was reached so far, and the state file."""

    def __init__(
        self, model: nn.Module, objective: Objective, settings: Settings, training: Sequence[Sample],
        held_out: Sequence[Sample], pad: int, bf16: bool, evaluated: NextToken, state: StateFile | None,
        progress: TrainingProgress,
    ) -> None:  # fmt: skip
        self.model, self.objective, self.settings, self.pad = model, objective, settings, pad
        self.training, self.held_out, self.evaluated = training, held_out, evaluated
        self.device = next(model.parameters()).device
        self.bf16, self.state, self.progress = bf16, state, progress
        self.trained = trained_parameters(model)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=settings.learning_rate, weight_decay=0.0)
        self.steps = settings.total_steps(len(training))
        self.curve: list[Point] = []
        self.step = 0
        self.loss = math.nan
        self.tokens = 0
        self.seconds = self.saved_at = 0.0
        self.is_whole_step = True  # parameters, optimizer and curve are those after `step` steps

    def run(self) -> list[Point]:
        """Train from where the state file is to the end; the curve."""
        if self.state is not None:
            self.step, self.curve = self.state.load(self.trained, self.optimizer)
        if self.curve:
            self.tokens, self.seconds = self.curve[-1].tokens, self.curve[-1].seconds
        self.saved_at = self.seconds
        self.began = time.monotonic() - self.seconds
        with kept_random_state():
            if not self.curve:
                self.curve.append(Point(0, 0, 0.0, held_out=self.held_out_loss()))
            elif self.step:
                self.evaluate()  # an interruption may have come before it
            if self.step < self.steps:
                self.train()
        return self.curve

    def train(self) -> None:
        """The steps that are left. KeyboardInterrupt passes once the state is on the disk."""
        try:
            ObjectiveTrainer(self).train()
        except KeyboardInterrupt:
            if self.is_whole_step:  # else the optimizer is at work, which takes little of a step's time
                self.save()
            raise

    def places(self) -> list[int]:
        """The samples of the steps that are left, in order."""
        first, last = self.step * self.settings.batch, self.steps * self.settings.batch
        return list(ordered(len(self.training), last, self.settings.seed))[first:]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Products in bfloat16, where that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def held_out_loss(self) -> float | None:
        """Mean negative log-likelihood of the next token on the held-out samples, without dropout; None without any."""
        if not self.held_out:
            return None
        total, targets, was_training = 0.0, 0, self.model.training
        self.model.eval()
        with torch.no_grad(), self.autocast():
            for start in range(0, len(self.held_out), self.settings.micro_batch):
                samples = self.held_out[start : start + self.settings.micro_batch]
                batch = {name: part.to(self.device) for name, part in collated(samples, self.pad).items()}
                count = sum(sample.targets() for sample in samples)
                total += float(self.evaluated(self.model, batch)) * count
                targets += count
        self.model.train(was_training)
        return total / targets

    def begin_step(self) -> None:
        """Before the first micro-batch: random numbers that this step alone has."""
        random_numbers = numpy.random.SeedSequence([self.settings.seed, self.step]).generate_state(1, numpy.uint64)
        torch.manual_seed(int(random_numbers[0] >> numpy.uint64(1)))
        self.step_losses: list[float] = []

    def micro_batch_done(self, loss: float, tokens: int) -> None:
        """After each micro-batch: its share of the step's loss, and the tokens that it read."""
        if not math.isfinite(loss):
            raise ArithmeticError(f"retrain: the loss of step {self.step + 1} is {loss}; {ADVICE}")
        self.step_losses.append(loss)
        self.tokens += tokens
        micro_batches = self.settings.batch // self.settings.micro_batch
        done = self.step * micro_batches + len(self.step_losses)
        self.progress(done, self.steps * micro_batches, self.loss)

    def begin_update(self) -> None:
        """Before the optimizer's step, until whose end nothing in memory is of a whole step."""
        self.is_whole_step = False

    def end_step(self) -> None:
        """After the optimizer's step: a point of the curve, and the state on the disk where it is time."""
        rate = self.settings.learning_rate * self.settings.rate(self.step, self.steps)
        self.step += 1
        if self.step == self.steps and not all(bool(part.isfinite().all()) for part in self.trained.values()):
            raise ArithmeticError(f"retrain: the weights are no numbers after step {self.step}; {ADVICE}")
        self.loss = math.fsum(self.step_losses)
        self.seconds = time.monotonic() - self.began
        self.curve.append(Point(self.step, self.tokens, self.seconds, rate, self.loss))
        self.is_whole_step = True
        self.evaluate()
        if self.step == self.steps or self.seconds - self.saved_at >= self.settings.save_seconds:
            self.save()

    def evaluate(self) -> None:
        """The held-out loss into the last point of the curve, where it is time and it is not there yet."""
        every = self.settings.eval_steps or max(1, self.steps // 20)
        is_due = self.step == self.steps or self.step % every == 0
        if is_due and self.curve[-1].held_out is None:
            held_out = self.held_out_loss()
            self.seconds = time.monotonic() - self.began
            self.curve[-1] = replace(self.curve[-1], seconds=self.seconds, held_out=held_out)

    def save(self) -> None:
        """The state to the disk, if it is kept."""
        if self.state is not None:
            self.state.save(self.step, self.curve, self.trained, self.optimizer)
            self.saved_at = self.seconds


class Steps(TrainerCallback):
    """Tells the session where steps begin and end."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.session.begin_step()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.session.begin_update()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.session.end_step()


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Give Python's, numpy's and torch's random numbers back as they were: Trainer seeds all of them."""
    python, state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(state)


class NothingWritten(TrainingArguments):
    """Trainer's arguments without its folder, which it makes before it knows whether anything is saved."""

    should_save = property(lambda _: False)


class ObjectiveTrainer(Trainer):
    """Trainer over the steps that are left of a session; it saves, evaluates and prints nothing itself."""

    def __init__(self, session: Session) -> None:
        settings = session.settings
        self.session = session
        self.accumulated = settings.batch // settings.micro_batch
        arguments = NothingWritten(
            output_dir=os.devnull,
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=self.accumulated,
            max_steps=session.steps - session.step,
            learning_rate=settings.learning_rate,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            use_cpu=session.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # else Trainer copies the model to every GPU of the machine in every step
        for group in session.optimizer.param_groups:
            group.setdefault("initial_lr", settings.learning_rate)
        first, total = session.step, session.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            session.optimizer, lambda step: settings.rate(min(first + step, total - 1), total)
        )
        super().__init__(
            model=session.model,
            args=arguments,
            callbacks=[Steps(session)],
            optimizers=(session.optimizer, schedule),
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # the loss below is a share of the mean over the whole batch

    def get_train_dataloader(self) -> DataLoader:
        """Batches of what is left, in the session's order."""
        session = self.session
        samples = [session.training[place] for place in session.places()]
        return DataLoader(
            samples,  # type: ignore[arg-type]  # a list is a dataset
            batch_size=session.settings.micro_batch,
            collate_fn=lambda batch: collated(batch, session.pad),
        )

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The objective's mean over a micro-batch, weighed by its share of the target tokens of the whole batch."""
        with self.session.autocast():
            mean = self.session.objective(model, inputs)
        assert num_items_in_batch is not None  # Trainer counts the labels of the whole batch
        targets = (inputs["labels"] != IGNORED).sum()
        loss = mean * (targets / num_items_in_batch)
        self.session.micro_batch_done(float(loss.detach()), int(inputs["attention_mask"].sum()))
        return loss
