"""The likelihood of the next token, logits never in memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyprune.models.transformers_decoder.logits import LogitMap
from pyprune.retraining.linear_cross_entropy import linear_cross_entropy
from pyprune.retraining.objectives.objective import last_states, states_at_head, transformers_model
from pyprune.retraining.samples import Batch


@dataclass(frozen=True)
class NextToken:
    """Mean negative log-likelihood of the target tokens. logits: from the head's output to the model's logits.
    any_family: whether the model is of another family than ours (`states_at_head`)."""

    logits: LogitMap = field(default_factory=LogitMap)
    any_family: bool = False

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        states = self.states(model, batch)
        head = transformers_model(model).get_output_embeddings()
        return linear_cross_entropy(
            states[:, :-1], head.weight, batch["labels"][:, 1:], head.bias, scale=self.logits.scale, cap=self.logits.cap
        )

    def states(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """The states `[N, T, hidden]` that the head reads."""
        return states_at_head(model, batch) if self.any_family else last_states(model, batch)
