"""The operators' contracts: schema, shapes and dtypes, each in one place. No imports: the build reads this file too.

Letters in shapes: B batch, T tokens, H hidden size, N heads, G KV heads, D head size, F FFN width, V vocabulary,
`...` any leading dimensions. Common to all operators:

* Weights are `[out, in]`, float32, bfloat16 or float16; rows may lie further apart than their length (padded strides).
* On a CPU a bfloat16 weight may also be compressed: the bytes, uint8, that `compress_bfloat16` gives, and no others. It
  means the weight that went in, and results have the same bits.
* Activations are float32 or the weights' dtype; results have the activations' dtype unless said otherwise. Rows of them
  may lie further apart as well. On a GPU results that a projection reads next, those of `norm_gate_up` and
  `decode_attention`, have a token's values on rows that start on 16 bytes (`pyprune/strides.py`), all others are
  contiguous.
* Any size is allowed; products are accumulated in float32. One row is as good as many: for few rows (up to 64) the
  weights are streamed once through fused kernels; many rows go through them in groups where that is the faster way
  (docs/kernels.md), else the products are torch's own GEMM.
* `skip` is a bool vector with one flag a unit (a block's half, say) and `unit` the index of this one. Where the flag is
  set the operator does nothing: `linear_residual` gives the residual back, the others give zeros and touch no cache.
* A wrong shape, dtype, device or index is a RuntimeError that names the argument and what is expected.
* Only `padded_linear` has gradients, the reference's; elsewhere, where one would be recorded (grad mode on, an input
  that requires grad), it is a RuntimeError.
"""

from __future__ import annotations

import hashlib

SCHEMAS = {
    # x [B, T, H] -> RMSNorm (norm [H]) -> q [N*D, H], k and v [G*D, H] (+ biases) -> q/k-norm [D] where given -> RoPE
    # with cos, sin [P, D/2] float32 at positions [B, T] int64 -> k and v written to the caches [B', G, L, D] (B' >= B)
    # at [b, :, slots[b, t]]; slots [B, T] int64 are the positions where not given. Gives q [B, T, N, D].
    "norm_qkv_rope": "(Tensor x, Tensor norm, float eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
    "Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor? q_norm, Tensor? k_norm, Tensor cos, Tensor sin, "
    "Tensor positions, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? skip=None, int unit=0, "
    "Tensor? slots=None) -> Tensor",
    # softmax(scale * q k^T) v for q [B, T, N, D] against caches [B', G, L, D]: query (b, t) sees cache rows
    # first[b] .. positions[b, t], of them the last `window` where window > 0 (a sliding window); first [B] int64 is 0
    # where not given. A query always sees its own row. Rows between the first and the last that any query of a sequence
    # sees must hold finite numbers. Query head n uses KV head n // (N / G). Gives [B, T, N, D].
    "decode_attention": "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, float scale, Tensor? skip=None, "
    "int unit=0, Tensor? first=None, int window=0) -> Tensor",
    # residual [..., O] + x [..., K] weight^T [O, K] + bias [O]. Gives [..., O] in the residual's dtype.
    "linear_residual": "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? skip=None, "
    "int unit=0) -> Tensor",
    # silu(h gate^T + gate_bias) * (h up^T + up_bias) with h = RMSNorm(x [..., H]); gate, up [F, H]. Gives [..., F].
    "norm_gate_up": "(Tensor x, Tensor norm, float eps, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, "
    "Tensor? skip=None, int unit=0) -> Tensor",
    # RMSNorm(x [..., H]) weight^T [V, H] + bias [V]. Gives float32 logits [..., V].
    "norm_head": "(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias=None) -> Tensor",
    # -log softmax(h weight^T + bias)[target] for each row, h = x [..., H], RMS-normalised where norm is given. Targets
    # [...] int64 in [0, V) or ignore_index, whose loss is 0. Logits never exist as a whole. Gives float32 [...].
    "linear_cross_entropy": "(Tensor x, Tensor weight, Tensor targets, Tensor? norm=None, float eps=0.0, "
    "Tensor? bias=None, int ignore_index=-100) -> Tensor",
    # x [..., K] weight^T [O, K] + bias [O], any K and O. Gives [..., O].
    "padded_linear": "(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    # weight [O, K] bfloat16, K up to 65535 -> bytes [O, S] of 12 bits a value, without loss, and the reverse. A row has
    # 16 bytes for its head, then sign and mantissa of each value and 4 bits for an exponent among 15 neighbours (or 0),
    # K filled up to groups of 64; a value with any other exponent is an exception of 4 bytes, the first two of them
    # in the head, the others behind. S is that of the row with most of them (csrc/cpu/bf12.h). `decompress` looks at
    # the head of every row; the operators that multiply look at the first and the last one's.
    "compress_bfloat16": "(Tensor weight) -> Tensor",
    "decompress_bfloat16": "(Tensor compressed, int columns) -> Tensor",
    # blocks [bytes] uint8, quantised values of a GGUF file; type, llama.cpp's number (2 is Q4_0) -> out [..., K] in its
    # dtype, each computed in float32 and rounded once: the `gguf` package's values to the bit. K is a multiple of the
    # type's block; rows of out may lie anywhere. The kernel has GGUF_TYPES, the reference all that the package has.
    "dequantize_gguf": "(Tensor blocks, int type, Tensor(a!) out) -> ()",
    # One decode step of a whole decoder, one token for each of B (up to 64) sequences: row tokens [B] of embedding
    # [V, H], every block, final norm and head as `norm_head`. Activations are float32. layout: for each block the
    # numbers that LAYOUT names, each a place in `weights`, -1 where the block has none; a block without `mha_norm`
    # (`ffn_norm`) has no attention (FFN). caches: keys and values of each block with attention, in order. skip: two
    # flags a block, attention and FFN, as for the operators of a single stage. Gives float32 logits [B, V].
    "decode_step": "(Tensor tokens, Tensor positions, Tensor embedding, Tensor[] weights, int[] layout, "
    "Tensor(a!)[] caches, Tensor norm, float eps, Tensor head, Tensor? head_bias, Tensor cos, Tensor sin, "
    "Tensor? skip=None) -> Tensor",
}

CUDA_SCHEMAS = {
    # silu(h gate^T + gate_bias) * (h up^T + up_bias) with h = RMSNorm(x [..., H]); gate, up [F, H]. Gives [..., F], its
    # rows as `strides.empty_rows` lays them out.
    "cuda_norm_gate_up": "(Tensor x, Tensor norm, float eps, Tensor gate, Tensor up, Tensor? gate_bias, "
    "Tensor? up_bias, Tensor? skip=None, int unit=0) -> Tensor",
    # residual [..., O] + x [..., K] weight^T [O, K] + bias [O]. Gives [..., O] in the residual's dtype.
    "cuda_linear_residual": "(Tensor x, Tensor weight, Tensor? bias, Tensor residual, Tensor? skip=None, "
    "int unit=0) -> Tensor",
    # h weight^T [O, K] + bias [O], h = x [..., K], RMS-normalised where norm is given. Gives [..., O], in float32 where
    # float_out is set: padded_linear's and norm_head's kernel.
    "cuda_linear": "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? norm=None, float eps=0.0, "
    "bool float_out=False) -> Tensor",
    # norm_qkv_rope without q/k-norms, for weights whose rows start on 16 bytes and caches of their dtype.
    "cuda_norm_qkv_rope": "(Tensor x, Tensor norm, float eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
    "Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor cos, Tensor sin, Tensor positions, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor? skip=None, int unit=0, Tensor? slots=None) -> Tensor",
}
"""The CUDA library's own operators (`cuda_schemas` says what they are)."""

LAYOUT = (
    "mha_norm", "q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "window",
    "ffn_norm", "gate", "up", "down", "gate_bias", "up_bias", "down_bias",
)  # fmt: skip
"""A block in `decode_step`'s layout; `window` is no place but the attention's window itself, 0 for none."""


GGUF_TYPES = (2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23)
"""llama.cpp's numbers of the types that `dequantize_gguf` has a kernel for: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
IQ4_NL and IQ4_XS."""

FUNCTIONS = {
    "pyprune_isa_compiled": "const char* (int)",
    "pyprune_isa_runs_here": "int (const char*)",
    "pyprune_isa_selected": "const char* ()",
    "pyprune_isa_select": "int (const char*)",
    "pyprune_gemm_select": "int (const char*)",
    "pyprune_gemm_is_own": "int (int)",
    "pyprune_read": "uint64_t (const void*, int64_t)",
    "pyprune_cuda_record": "void (int)",
    "pyprune_cuda_problem": "const char* ()",
}
"""The libraries' C functions, which Python calls through ctypes."""


def digest() -> str:
    """A short name for all that Python and the native libraries must agree on: schemas, the step's layout, the types
    of GGUF blocks, functions.

    It is part of the libraries' file names and stands inside them too (`library_files`), so that a library built for
    other contracts is never loaded: its kernels would read arguments that are not there.
    """
    tables = ({**SCHEMAS, **CUDA_SCHEMAS}, dict(enumerate(LAYOUT)), dict(enumerate(GGUF_TYPES)), FUNCTIONS)
    text = "\n\n".join("\n".join(f"{name} {value}" for name, value in sorted(table.items())) for table in tables)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":  # for CMake, which compiles both into the libraries
    print(digest())
    print(",".join(LAYOUT))
