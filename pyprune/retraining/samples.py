"""Training samples: token ids with the tokens that are to be predicted, their order, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from pyprune.scoring.losses import IGNORED

Batch = dict[str, Tensor]
"""`input_ids`, `attention_mask` and `labels`, int64 `[N, T]`; a label is the token at its own place, IGNORED where none
is to be predicted: the first one, prompts and padding."""


@dataclass(frozen=True)
class Sample:
    """Token ids `[T]` and labels `[T]`, int64: the same ids, or IGNORED where nothing is to be predicted."""

    input_ids: numpy.ndarray
    labels: numpy.ndarray

    def targets(self) -> int:
        """How many tokens are predicted."""
        return int((self.labels[1:] != IGNORED).sum())


def text_sample(ids: numpy.ndarray) -> Sample:
    """A window of plain text: all tokens but the first are predicted."""
    return Sample(ids, ids)


def ordered(samples: int, count: int, seed: int) -> Iterator[int]:
    """`count` places of samples in training order: passes over all of them, each in an order of its own."""
    done, epoch = 0, 0
    while done < count:
        for place in numpy.random.default_rng([seed, epoch]).permutation(samples)[: count - done].tolist():
            yield place
            done += 1
        epoch += 1


def collated(samples: Sequence[Sample], pad: int) -> Batch:
    """A batch of samples, padded on the left to the longest with the token `pad`."""
    length = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), length), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, sample in enumerate(samples):
        start = length - len(sample.input_ids)
        ids[row, start:] = torch.from_numpy(sample.input_ids)
        mask[row, start:] = 1
        labels[row, start + 1 :] = torch.from_numpy(sample.labels[1:])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
