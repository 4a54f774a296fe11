"""A linear that streams its weights once for few rows: the LM head, and what an adapter (LoRA) is wrapped around."""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune import ops
from pyprune.runtime.huggingface.classes import Accelerated
from pyprune.runtime.huggingface.operators import call
from pyprune.runtime.huggingface.plain import plain_weights
from pyprune.runtime.rows import worth_it


class Linear(Accelerated):
    """Accelerated nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not worth_it(x):
            return super().forward(x)
        weights = plain_weights(self, type(self), x.dtype, x.device)
        return super().forward(x) if weights is None else call(ops.padded_linear, x, *weights)
