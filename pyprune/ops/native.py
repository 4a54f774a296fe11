"""The compiled CPU kernels: loading them, choosing their instruction set, and saying what is there.

`PYPRUNE_ISA=portable|avx2|avx512|avx512_bf16|amx` forces an instruction set; `PYPRUNE_GEMM=own|torch` what does the
GEMMs, more than SKINNY_ROWS rows of activations (`auto`: what was measured to be faster); `PYPRUNE_NATIVE=0` leaves the
library unloaded, so that the reference implementations run.
"""

from __future__ import annotations

import ctypes
import os
import warnings

import torch

from pyprune.errors import InputError, NativeLibraryWarning
from pyprune.ops import library_files
from pyprune.ops.schemas import CONSTANTS

LIBRARY_PATH = library_files.path("cpu")
REMEDY = (
    "in a checkout, make setup; else install the wheel for this machine, or install a C++ compiler (Debian, Ubuntu: "
    "apt install g++), then, in the folder of pyprune's sources, pip install --force-reinstall --no-deps ."
)

ISAS = ("amx", "avx512_bf16", "avx512", "avx2", "portable")
GEMMS = ("auto", "own", "torch")
HALF_PRECISION = (torch.bfloat16, torch.float16)
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16)  # by their number in C++ (DType in kernels.h)

_library: ctypes.CDLL | None = None
_reason: str | None = None  # why there is no library; None before the first attempt


def load() -> bool:
    """Load the library once; True if its kernels are in use. Warns once (NativeLibraryWarning) when they are not.

    InputError for a PYPRUNE_ISA that the library does not take, or that no library is there to take, and for a
    PYPRUNE_GEMM that is none; without the library that one is for the kernels of a GPU.
    """
    global _library, _reason
    if _library is not None or _reason is not None:
        return _library is not None
    if os.environ.get("PYPRUNE_NATIVE") == "0":
        _reason = "switched off by PYPRUNE_NATIVE=0"
    else:
        _load_library()
    try:
        if isa := os.environ.get("PYPRUNE_ISA"):
            select_isa(isa)
        if gemm := os.environ.get("PYPRUNE_GEMM"):
            _require_gemm(gemm)
            if _library is not None:
                select_gemm(gemm)
    except InputError:
        _library = _reason = None  # so that the next import complains too
        raise
    return _library is not None


def _load_library() -> None:
    """Load the library, or warn and keep the reason why there is none."""
    global _library, _reason
    _reason = library_files.problem(LIBRARY_PATH)
    if _reason is None:
        try:
            torch.ops.load_library(str(LIBRARY_PATH))
            _library = ctypes.CDLL(str(LIBRARY_PATH))
        except OSError as error:
            _reason = f"{LIBRARY_PATH.name} does not load: {error}"
    if _library is None:
        warnings.warn(
            f"pyprune runs on reference implementations, slowly: {_reason}. To get the kernels: {REMEDY}",
            NativeLibraryWarning,
            stacklevel=3,
        )
        return
    _library.pyprune_isa_compiled.restype = ctypes.c_char_p
    _library.pyprune_isa_selected.restype = ctypes.c_char_p
    _library.pyprune_constant.restype = ctypes.c_int64
    _library.pyprune_packed_bytes.restype = ctypes.c_int64
    _library.pyprune_packed_bytes.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def compiled_isas() -> list[str]:
    """Instruction sets in the library, best first; empty without the library."""
    if _library is None:
        return []
    names: list[str] = []
    while (name := _library.pyprune_isa_compiled(len(names))) is not None:
        names.append(name.decode())
    return names


def runnable_isas() -> list[str]:
    """Instruction sets in the library that this processor has, best first."""
    if _library is None:
        return []
    return [name for name in compiled_isas() if _library.pyprune_isa_runs_here(name.encode())]


def selected_isa() -> str | None:
    """The instruction set in use; None without the library."""
    return None if _library is None else _library.pyprune_isa_selected().decode()


def select_isa(name: str) -> None:
    """Use one instruction set from now on. InputError when it was not compiled or this processor lacks it."""
    if _library is None:
        raise InputError(f"instruction set {name!r}: the CPU library is not loaded ({_reason})")
    if not _library.pyprune_isa_select(name.encode()):
        raise InputError(f"instruction set {name!r}: one of {', '.join(runnable_isas())} is expected on this machine")


def select_gemm(name: str) -> None:
    """What does GEMMs (more than SKINNY_ROWS rows) from now on: our kernels (`own`), torch's (`torch`), or
    what was measured to be faster on such a processor (`auto`). InputError for another name."""
    if _library is None:
        raise InputError(f"GEMM {name!r}: the CPU library is not loaded ({_reason})")
    _require_gemm(name)
    _library.pyprune_gemm_select(name.encode())


def _require_gemm(name: str) -> None:
    if name not in GEMMS:
        raise InputError(f"GEMM {name!r}: one of {', '.join(GEMMS)} is expected")


def has_own_gemm(dtype: torch.dtype) -> bool:
    """Whether our kernels do the GEMMs (more than SKINNY_ROWS rows) with weights of half precision: a row's bits then
    do not depend on how many there are. False for other dtypes, and without the library."""
    if _library is None or dtype not in HALF_PRECISION:
        return False
    return bool(_library.pyprune_gemm_is_own(dtype == torch.float16))


def constant(name: str) -> int:
    """A size that the kernels choose (`schemas.CONSTANTS`): the library's, and without it the value stated there."""
    return CONSTANTS[name] if _library is None else _library.pyprune_constant(name.encode())


def packed_bytes(dtype: torch.dtype, width: int, rows: int) -> int:
    """What `rows` of `width` activations take where they are packed for weights of `dtype`; without the library as
    float32."""
    if _library is None:
        return rows * width * torch.float32.itemsize
    return _library.pyprune_packed_bytes(WEIGHT_TYPES.index(dtype), width, rows)


def multiplies_bfloat16() -> bool:
    """Whether the instruction set in use multiplies bfloat16 itself; False without the library."""
    return _library is not None and bool(_library.pyprune_multiplies_bf16())


CHECKED_ON = {
    "amx": "Intel Xeon with AMX (beside an H100)",
    "avx512_bf16": "AMD EPYC (Zen 4)",
    "avx512": "Intel Xeon, AMD EPYC (Zen 4)",
    "avx2": "Intel Xeon, AMD EPYC (Zen 3, Zen 4)",
    "portable": "Intel Xeon, AMD EPYC (Zen 3, Zen 4)",
}
"""The processors on which each instruction set has passed the operators' tests."""


def report() -> dict[str, object]:
    """What is available and, where something is not, why and what to do.

    `isas_unused`: for each instruction set that is not in use, the reason. `isa_checked_on`: the processors on which
    the one in use has passed the tests. `own_gemm_for`: the dtypes of weights that many rows meet in our own kernels.
    """
    available = load()
    off = os.environ.get("PYPRUNE_NATIVE") == "0"
    unused = {}
    for name in ISAS:
        if name not in compiled_isas():
            unused[name] = "not compiled: the compiler does not know it" if available else "no library"
        elif name not in runnable_isas():
            unused[name] = "this processor or its system lacks it"
        elif name != selected_isa():
            unused[name] = f"PYPRUNE_ISA={name} takes it"
    return {
        "cpu_library": LIBRARY_PATH.name if available else None,
        "reason": _reason,
        "remedy": None if available else "unset PYPRUNE_NATIVE" if off else REMEDY,
        "isas_compiled": compiled_isas(),
        "isas_runnable": runnable_isas(),
        "isa_selected": selected_isa(),
        "isa_checked_on": CHECKED_ON.get(selected_isa() or ""),
        "isas_unused": unused,
        "own_gemm_for": [str(d).removeprefix("torch.") for d in HALF_PRECISION if has_own_gemm(d)],
    }
