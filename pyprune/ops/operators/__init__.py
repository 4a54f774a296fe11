"""The operators, one file each (`pyprune.ops.specification` says what stands in it).

Letters in shapes: B batch, T tokens, H hidden size, N heads, G KV heads, D head size, F FFN width, V vocabulary,
`...` any leading dimensions. Common to all operators:

* Weights are `[out, in]`, float32, bfloat16 or float16; rows may lie further apart than their length (padded strides).
* On a CPU a weight may also be stored in a format of `weight_formats`: what its `encode` operator gives, and nothing
  else. It means the weight that went in, and results have the same bits.
* Activations are float32 or the weights' dtype; results have the activations' dtype unless said otherwise. Rows of them
  may lie further apart as well. On a GPU results that a projection reads next, those of `norm_gate_up` and
  `decode_attention`, have a token's values on rows that start on 16 bytes (`pyprune/strides.py`), all others are
  contiguous.
* Any size is allowed; products are accumulated in float32. One row is as good as many: for up to SKINNY_ROWS rows the
  weights are streamed once through fused kernels; more rows go through them in groups where that is faster
  (docs/reference/kernels.md), else the products are torch's own GEMM.
* `skip` is a bool vector with one flag a sublayer (a block's attention or FFN) and `sublayer` the index of this one.
  Where the flag is set the operator does nothing: `linear_residual` gives the residual back, the others give zeros and
  touch no cache.
* A wrong shape, dtype, device or index is a RuntimeError that names the argument and what is expected.
* Only `padded_linear` has gradients, the reference's; elsewhere, where one would be recorded (grad mode on, an input
  that requires grad), it is a RuntimeError.

The operators named `cuda_...` are the CUDA library's (csrc/cuda): linears of 1 or 2 rows of activations in all (more is
a RuntimeError), which are the decode step's. They stand in for the operators in their `routes`. Activations, norms,
biases and the residual are float32 or of the weights' dtype. The skip flag is read on the device, nothing waits for the
host: they can be captured in a CUDA graph once they have run before. `PYPRUNE_CUDA_OVERLAP=auto|0|1`: on sm_90 a kernel
may ask for its first weights before the previous kernel has ended: while the engine records a decode step (auto), never
(0), always (1: right only where no kernel before it in the stream, still running, writes a weight or a skip mask, for
the flag is read then too).
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pyprune.ops.specification import Operator

_ALL: dict[str, Operator] = {
    module.name: import_module(f"{__name__}.{module.name}").OPERATOR for module in iter_modules(__path__)
}

OPERATORS = {name: operator for name, operator in _ALL.items() if not operator.routes}
"""The operators by name."""

CUDA_OPERATORS = {name: operator for name, operator in _ALL.items() if operator.routes}
"""The CUDA library's own."""
