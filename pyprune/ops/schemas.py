"""What Python and the native libraries must agree on, and its digest. No imports of ours: the build runs this file."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path


def _schema_in(file: Path) -> str:
    """The literal that a file of `operators/` assigns to SCHEMA."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["SCHEMA"]:
            return str(ast.literal_eval(statement.value))
    raise RuntimeError(f"{file}: SCHEMA = a string is expected")


SCHEMAS = {
    file.stem: _schema_in(file)
    for file in sorted(Path(__file__).with_name("operators").glob("*.py"))
    if file.stem != "__init__"
}
"""The signature of every operator, those of the CUDA library too."""

LAYOUT = (
    "mha_norm", "q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm", "window",
    "ffn_norm", "gate", "up", "down", "gate_bias", "up_bias", "down_bias",
)  # fmt: skip
"""A block in `decode_step`'s layout, of which the build makes C++'s enum; `window` is no place but the attention's
window itself, 0 for none."""

GGUF_TYPES = (2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23)
"""llama.cpp's numbers of the types that `dequantize_gguf` has a kernel for: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
IQ4_NL and IQ4_XS."""

CONSTANTS = {
    "SKINNY_ROWS": 64,
    "KV_SPLIT": 256,
    "PREFILL_QUERIES": 64,
    "SLICE_ELEMENTS": 4 << 20,
    "SLICE_ROWS": 256,
}
"""Sizes that the CPU kernels choose and Python plans by: C++ exports them (csrc/cpu/shared_constants.cpp), and
`native.constant` reads them there. These values stand in where the library is not loaded.

SKINNY_ROWS: activation rows that meet the weights in one pass. KV_SPLIT: cache rows of a split in attention.
PREFILL_QUERIES: queries that attend as one task in prefill. SLICE_ELEMENTS, SLICE_ROWS: a weight is widened to float32
so many values at a time, but at least so many rows."""

FUNCTIONS = {
    "pyprune_isa_compiled": "const char* (int)",
    "pyprune_isa_runs_here": "int (const char*)",
    "pyprune_isa_selected": "const char* ()",
    "pyprune_isa_select": "int (const char*)",
    "pyprune_gemm_select": "int (const char*)",
    "pyprune_gemm_is_own": "int (int)",
    "pyprune_constant": "int64_t (const char*)",
    "pyprune_packed_bytes": "int64_t (int, int64_t, int64_t)",
    "pyprune_multiplies_bf16": "int ()",
    "pyprune_read": "uint64_t (const void*, int64_t)",
    "pyprune_cuda_record": "void (int)",
    "pyprune_cuda_problem": "const char* ()",
}
"""The libraries' C functions, which Python calls through ctypes."""


def digest() -> str:
    """A short name for all that Python and the native libraries must agree on.

    It is part of the libraries' file names and stands inside them too (`library_files`), so that a library built for
    other schemas is never loaded: its kernels would read arguments that are not there.
    """
    tables: tuple[dict[str, object], ...] = (
        dict(SCHEMAS),
        {str(place): name for place, name in enumerate(LAYOUT)},
        {str(place): number for place, number in enumerate(GGUF_TYPES)},
        dict(CONSTANTS),
        dict(FUNCTIONS),
    )
    text = "\n\n".join("\n".join(f"{name} {value}" for name, value in sorted(table.items())) for table in tables)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


if __name__ == "__main__":  # for CMake, which compiles both into the libraries
    print(digest())
    print(",".join(LAYOUT))
