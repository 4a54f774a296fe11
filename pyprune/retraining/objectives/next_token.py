"""The likelihood of the next token, logits never in memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyprune.models.transformers_decoder.logits import LogitMap
from pyprune.retraining.linear_cross_entropy import linear_cross_entropy
from pyprune.retraining.objectives.objective import last_states, transformers_model
from pyprune.retraining.samples import Batch


@dataclass(frozen=True)
class NextToken:
    """Mean negative log-likelihood of the target tokens. logits: from the head's output to the model's logits."""

    logits: LogitMap = field(default_factory=LogitMap)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        states = last_states(model, batch)
        head = transformers_model(model).get_output_embeddings()
        return linear_cross_entropy(
            states[:, :-1], head.weight, batch["labels"][:, 1:], head.bias, scale=self.logits.scale, cap=self.logits.cap
        )
