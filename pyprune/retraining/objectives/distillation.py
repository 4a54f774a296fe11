"""Distillation: the model in training is taught by the unpruned one, on the tokens that it is trained on.

    loss = (1 - w) next-token loss + w t^2 D(teacher, student)             forward-kl, reverse-kl
    loss = (1 - w) next-token loss + w mean over blocks of |x - y|^2 / |y|^2    hidden

with D over the next-token distributions (`retraining.divergence`), x the student's stream behind one of its blocks and
y the teacher's behind the block that it was in the original (`pyprune.index_map`). The last block's target is the
teacher's last stream, which the head reads. Teacher and student run the blocks that they share once, by the operators
for inference, where nothing in them trains. Sources: Hinton et al. 2015; for hidden states TinyBERT (Jiao et al. 2020),
here relative to the target's norm as the RMSNorm behind it sees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyprune import ops
from pyprune.checks import is_number, is_whole
from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.pruning.index_map import index_map
from pyprune.recovery.blockwise import relative_error
from pyprune.recovery.lineage import equal_prefix
from pyprune.retraining import divergence
from pyprune.retraining.linear_cross_entropy import linear_cross_entropy
from pyprune.retraining.linear_distillation import Mixture, linear_distillation
from pyprune.retraining.objectives.objective import transformers_model
from pyprune.retraining.prefix import frozen_blocks, padding_mask, states_behind
from pyprune.retraining.samples import Batch
from pyprune.runtime import sequence
from pyprune.scoring.losses import IGNORED

KINDS = (*divergence.KINDS, "hidden")


@dataclass
class Distillation:
    """An objective: the mean loss of a batch's target tokens, taught by `teacher`, which is never changed.

    student: the decoder that is trained, before the training: it says which block each of its blocks was. kind: one of
    KINDS. top_k, temperature: of the divergence. weight: of what the teacher says, in (0, 1]; the next-token loss has
    the rest.
    Raises InputError for another vocabulary or hidden size, blocks that the teacher lacks, and values out of range.
    """

    teacher: Decoder = field(repr=False)
    student: Decoder = field(repr=False)
    kind: str = "forward-kl"
    top_k: int | None = None
    temperature: float = 1.0
    weight: float = 0.5
    shared: int = field(init=False)
    """Leading blocks that both have: a training that leaves them out runs them once."""

    def __post_init__(self) -> None:
        check_options(self.kind, self.top_k, self.temperature, self.weight)
        teacher, student = self.teacher, self.student
        teacher.require_weights()
        if teacher.vocab_size != student.vocab_size:
            raise InputError(
                f"distill: {teacher.name} has {teacher.vocab_size} tokens, {student.name} {student.vocab_size}; the"
                " same vocabulary is expected"
            )
        check_top_k(self.top_k, teacher.vocab_size)
        self.shared = min(equal_prefix(teacher, student), len(student.blocks) - 1)  # the last one is always run
        if self.kind != "hidden":
            return
        if teacher.hidden_size != student.hidden_size:
            raise InputError(
                f"distill: {teacher.name} has {teacher.hidden_size} channels, {student.name} {student.hidden_size};"
                " the same hidden size is expected"
            )
        present = [block.index for block in teacher.sizes().blocks]
        for index in self._originals():
            if index not in present:
                raise InputError(f"distill: {teacher.name} lacks block {index}, which {student.name} has")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of `batch`: input_ids, attention_mask and labels `[N, T]`, -100 where nothing is predicted."""
        with torch.no_grad(), torch.autocast(self.teacher.device.type, enabled=False):
            blocks = min(self.shared, frozen_blocks(model))
            prefix, behind = self._teach(batch, blocks)
        outputs: list[Tensor] | None = [] if self.kind == "hidden" else None
        head = transformers_model(model).get_output_embeddings()
        if prefix is not None:
            prefix = prefix.to(head.weight.device)
        states = states_behind(model, batch, prefix, blocks, outputs)
        labels = batch["labels"].to(states.device)[:, 1:]
        if outputs is None:
            predicted = labels != IGNORED
            rows = behind[-1][:, :-1][predicted.to(self.teacher.device)]

            def teacher_logits(part: slice) -> Tensor:
                linear, norm = self.teacher.head, self.teacher.norm
                return ops.norm_head(rows[part], norm, self.teacher.eps, linear.weight, linear.bias).to(states.device)

            mixture = Mixture(self.kind, self.top_k, self.temperature, self.weight)
            return linear_distillation(
                states[:, :-1][predicted], head.weight, head.bias, labels[predicted], teacher_logits, mixture
            )
        errors = [
            _error(x, y, batch.get("attention_mask")) for x, y in zip(outputs, behind[-len(outputs) :], strict=True)
        ]
        error = torch.stack(errors).mean()
        if self.weight == 1:
            return error
        loss = linear_cross_entropy(states[:, :-1], head.weight, labels, head.bias)
        return (1 - self.weight) * loss + self.weight * error

    def _originals(self) -> list[int]:
        """The teacher's block behind which each block of the student is to have the teacher's stream."""
        originals = [block.index for block in index_map(self.student)]
        return [*originals[:-1], self.teacher.sizes().blocks[-1].index]

    def _teach(self, batch: Batch, blocks: int) -> tuple[Tensor | None, list[Tensor]]:
        """The stream behind the first `blocks` blocks, None for 0; and the teacher's streams: behind the block of each
        of the student's, or for the logits the last one alone."""
        teacher, ids = self.teacher, batch["input_ids"].to(self.teacher.device)
        mask = padding_mask(batch, teacher.device)
        cos, sin = teacher.rope.tables(ids.shape[1], prompt=ids.shape[1])
        wanted = set(self._originals()) if self.kind == "hidden" else {teacher.sizes().blocks[-1].index}
        x = sequence.embed(teacher, ids)
        prefix, behind = None, []
        for place, block in enumerate(teacher.blocks, start=1):
            x = sequence.run_block(block, x, cos, sin, teacher.eps, mask)
            if place == blocks:
                prefix = x
            if block.index in wanted:
                behind.append(x)
        return prefix, behind


def distillation_options(teacher: Any, objective: Any, options: dict[str, Any]) -> dict[str, Any] | None:
    """Those of the options of `Distillation` that are not None, checked; None without a teacher. InputError for options
    without one, and for another objective besides."""
    options = {name: value for name, value in options.items() if value is not None}
    if teacher is None:
        for name, value in options.items():
            raise InputError(f"distill: {name} {value!r} given, but no model to distill from")
        return None
    if objective is not None:
        raise InputError("distill: an objective and a model to distill from were given; one of the two is expected")
    values = {"kind": "forward-kl", "top_k": None, "temperature": 1.0, "weight": 0.5, **options}
    check_options(**values)
    return values


def check_options(kind: str, top_k: int | None, temperature: float, weight: float) -> None:
    """Raise InputError for options that cannot be had, before anything is loaded."""
    if kind not in KINDS:
        raise InputError(f"distill: loss {kind!r}: {', '.join(KINDS)} are accepted")
    if top_k is not None and (not is_whole(top_k) or int(top_k) < 1):
        raise InputError(f"distill: top_k {top_k!r}: a whole number from 1 is expected")
    for name, value, most in (("temperature", temperature, math.inf), ("weight", weight, 1.0)):
        if not is_number(value) or not 0 < value <= most or math.isinf(value):
            limits = "above 0" if math.isinf(most) else "above 0 and at most 1"
            raise InputError(f"distill: {name} {value!r}: a number {limits} is expected")
    if kind == "hidden" and (top_k is not None or temperature != 1.0):
        raise InputError("distill: top_k and temperature belong to forward-kl and reverse-kl; loss hidden has neither")


def check_top_k(top_k: int | None, vocab_size: int) -> None:
    """Raise InputError where so many tokens leave none to compare as one."""
    if top_k is not None and top_k >= vocab_size:
        raise InputError(f"distill: top_k {top_k}: 1 to {vocab_size - 1} are accepted, None for all")


def _error(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """mean of |x - y|^2 / |y|^2 over the tokens that are no padding; x, y `[N, T, hidden]`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(wide), y.to(x.device, wide)
    if mask is not None:
        real = mask.to(x.device, torch.bool)
        x, y = x[real], y[real]
    return relative_error(x, y)
