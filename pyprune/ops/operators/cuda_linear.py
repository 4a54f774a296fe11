"""`padded_linear` and `norm_head` of one or two rows, by the CUDA library.

h weight^T [O, K] + bias [O], h = x [..., K], RMS-normalised where norm is given. Gives [..., O], in float32 where
float_out is set: padded_linear's and norm_head's kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.specification import Operator, Route

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? norm=None, float eps=0.0, bool float_out=False) -> Tensor"
)


def fake(x: Tensor, weight: Tensor, float_out: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32 if float_out else x.dtype)


OPERATOR = Operator(SCHEMA, fake, routes={"padded_linear": Route(), "norm_head": Route({"float_out": True})})
