"""What the compiler makes of the kernels, without a GPU: registers, stack, shared memory, width of the weight loads.

    python -m pyprune.triton_kernels.inspect [--arch 86 90] [--dtype bf16 fp16]

Operators are called with meta tensors of LLaMA-7B's shapes; what they would launch is recorded and compiled. The two
load columns are the widest load of the weights where K = 7155: padded rows, as they are kept on a GPU, and packed ones,
of which only every eighth starts on 16 bytes. For them the weights alone are declared aligned, so that a 16-byte load
can only be theirs. Nothing here says how fast a kernel is.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from pyprune.strides import empty_rows, gpu_rows
from pyprune.triton_kernels import attention, configs, cross_entropy, projections, qkv_rope
from pyprune.triton_kernels.launch import Launch, recording
from pyprune.triton_kernels.launch import options as compile_options

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HIDDEN, FFN, VOCAB, HEADS, HEAD_DIM, LENGTH = 4096, 11008, 32000, 32, 128, 2048  # LLaMA-7B
ODD = 7155  # a width of the paper's Table 1 (LLM-Pruner, 7B): 14310 bytes a row in bf16
WEIGHTS = ("a", "b", "k_weight", "v_weight", "k_cache", "v_cache")  # the kernels' arguments that stream from memory
_NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Usage:
    """A compiled kernel: registers and stack bytes (spills, local arrays) a thread, shared bytes a program."""

    kernel: str
    registers: int
    stack: int
    shared: int
    weight_load: int  # bytes of weights that a thread takes from global memory with one instruction
    widest_load: int  # the same of any tensor
    ptx: str
    ttgir: str  # Triton's own representation, which shows layouts and their conversions


def _compile(launch: Launch, capability: int, only: tuple[str, ...] | None) -> CompiledKernel:
    """What Triton would compile for this launch; with `only`, no other pointer is declared to lie on 16 bytes."""
    function = launch.kernel
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(function.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        divisible = False
        if parameter.is_constexpr or value is None:
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, Tensor):
            signature[name] = _NAMES[value.dtype]
            divisible = value.data_ptr() % 16 == 0 and (only is None or name in only)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0 and not parameter.do_not_specialize
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compile_options(launch))


def weight_load(ptx: str) -> int:
    """Bytes of the widest load of weights in PTX.

    Those are the loads marked evict-first and the asynchronous copies that bypass the L1 cache, which exist for 16
    bytes only. Where there is neither (a tile that is read again by others is not marked): the widest load from
    global memory, 64-bit integers apart.
    """
    loads = _loads(ptx)
    marked = [size for size, streamed in loads if streamed]
    return max(marked or [size for size, _ in loads], default=0)


def widest_load(ptx: str) -> int:
    """Bytes of the widest load in PTX from global memory, or copy from there, 64-bit integers apart."""
    return max((size for size, _ in _loads(ptx)), default=0)


def _loads(ptx: str) -> list[tuple[int, bool]]:
    """The bytes of every load, and whether it is marked as one of weights."""
    loads = [
        (int(n or 1) * int(bits) // 8, "evict_first" in kind)
        for kind, n, bits in re.findall(r"ld\.global([\w.:]*?)(?:\.v(\d))?\.[bfus](8|16|32)\b", ptx)
    ]
    return loads + [(16, True)] * ("cp.async.cg.shared.global" in ptx)


def _cuobjdump() -> str:
    return triton.knobs.nvidia.cuobjdump.path


@functools.cache
def knows(capability: int) -> bool:
    """Whether one of the assemblers that Triton brings makes machine code for this compute capability."""
    tools = (getattr(triton.knobs.nvidia, name, None) for name in ("ptxas", "ptxas_blackwell"))
    helps = (subprocess.run([tool.path, "--help"], capture_output=True, text=True).stdout for tool in tools if tool)
    return any(f"'sm_{capability}'" in text for text in helps)


def usage(launch: Launch, capability: int, only: tuple[str, ...] | None = None) -> Usage:
    """Compile one recorded launch for a compute capability (86 is 8.6) and read its resources from the machine code."""
    compiled = _compile(launch, capability, only)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [_cuobjdump(), "--dump-resource-usage", str(file)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    ptx = compiled.asm["ptx"]
    return Usage(
        launch.kernel.__name__,
        numbers["REG"],
        numbers["STACK"] + numbers["LOCAL"],
        compiled.metadata.shared,
        weight_load(ptx),
        widest_load(ptx),
        ptx,
        compiled.asm["ttgir"],
    )


def recorded(capability: int, call: Callable[[], object]) -> list[Launch]:
    """The launches that `call` would make on a GPU of this compute capability."""
    with recording(configs.ARCHITECTURES[capability]) as launches:
        call()
    return list(launches)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def weight(out: int, inner: int, dtype: torch.dtype, padded: bool = True) -> Tensor:
    """A weight [out, inner] on the meta device, as it is kept on a GPU, or packed."""
    packed = _meta(out, inner, dtype=dtype)
    return gpu_rows(packed) if padded else packed


def operators(
    rows: int, dtype: torch.dtype, hidden: int = HIDDEN, ffn: int = FFN, padded: bool = True, head_dim: int = HEAD_DIM,
    activations: torch.dtype = torch.float32,
) -> dict[str, Callable[[], object]]:  # fmt: skip
    """Calls of every operator with meta tensors: `rows` sequences of one token."""

    def w(out: int, inner: int) -> Tensor:
        return weight(out, inner, dtype, padded)

    def a(*shape: int) -> Tensor:
        rows = _meta if not padded else partial(empty_rows, device=torch.device("meta"))
        return rows(*shape, dtype=activations)

    x, norm, skip = a(rows, hidden), _meta(hidden, dtype=dtype), _meta(64, dtype=torch.bool)
    heads = HEADS
    caches = [_meta(rows, heads, LENGTH, head_dim, dtype=dtype) for _ in range(2)]
    tables = [_meta(LENGTH, head_dim // 2) for _ in range(2)]
    places = _meta(rows, 1, dtype=torch.int64)
    qkv = [w(heads * head_dim, hidden) for _ in range(3)]
    group = [caches[i][:, : heads // 4] for i in range(2)]  # grouped queries: 4 heads to a KV head
    token, prompt = a(rows, 1, heads, head_dim), a(rows, 32, heads, head_dim)
    prompt_places, first = _meta(rows, 32, dtype=torch.int64), _meta(rows, dtype=torch.int64)
    qk = [_meta(head_dim, dtype=dtype) for _ in range(2)]
    scale = head_dim**-0.5

    def project(q_norm: Tensor | None, k_norm: Tensor | None, slots: Tensor | None) -> object:
        none = (None, None, None)
        return qkv_rope.norm_qkv_rope(
            x.view(rows, 1, hidden), norm, 1e-5, *qkv, *none, q_norm, k_norm, *tables, places, *caches, skip, 3, slots
        )

    return {
        "norm_qkv_rope": lambda: project(None, None, None),
        "norm_qkv_rope, slots": lambda: project(None, None, places),
        "norm_qkv_rope, q/k-norm": lambda: project(qk[0], qk[1], None),
        "decode_attention": lambda: attention.decode_attention(token, *caches, places, scale, skip, 3),
        "decode_attention, GQA": lambda: attention.decode_attention(token, *group, places, scale, skip, 3),
        "decode_attention, 32 tokens": lambda: attention.decode_attention(
            prompt, *group, prompt_places, scale, skip, 3
        ),
        "decode_attention, window": lambda: attention.decode_attention(
            token, *group, places, scale, skip, 3, first, 256
        ),
        "linear_residual": lambda: projections.linear_residual(
            a(rows, ffn), w(HIDDEN, ffn), None, a(rows, HIDDEN), skip, 3
        ),
        "norm_gate_up": lambda: projections.norm_gate_up(
            x, norm, 1e-5, w(ffn, hidden), w(ffn, hidden), None, None, skip, 3
        ),
        "norm_head": lambda: projections.norm_head(x, norm, 1e-5, w(VOCAB, hidden)),
        "linear_cross_entropy": lambda: cross_entropy.linear_cross_entropy(
            x, w(VOCAB, hidden), _meta(rows, dtype=torch.int64), norm, 1e-5
        ),
        "padded_linear": lambda: projections.padded_linear(a(rows, ffn), w(HIDDEN, ffn)),
    }


def reads_weights(launch: Launch) -> bool:
    """Whether the kernel reads a projection's weight, or two."""
    return any(argument in launch.arguments for argument in WEIGHTS[:2])


def _weight_load(launches: list[Launch], arch: int) -> int:
    return usage(next(filter(reads_weights, launches)), arch, WEIGHTS).weight_load


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pyprune.triton_kernels.inspect", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--arch", type=int, nargs="+", default=[86, 90], choices=sorted(configs.ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", default=["bf16", "fp16"], choices=list(DTYPES), help="of the weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256], help="rows of activations (tokens)")
    options = parser.parse_args(argv)
    print(
        f"{'operator':27} {'kernel':22} rows  arch  dtype  registers  stack B  shared KiB  "
        f"load B at K = {ODD}: padded / odd rows"
    )
    for arch in options.arch:
        for dtype in options.dtype:
            for rows in options.rows:
                calls = operators(rows, DTYPES[dtype])
                padded = operators(rows, DTYPES[dtype], ODD, ODD)
                odd = operators(rows, DTYPES[dtype], ODD, ODD, padded=False)
                for name in calls:
                    plain, even, uneven = (recorded(arch, version[name]) for version in (calls, padded, odd))
                    names = {launch.kernel.__name__ for launch in plain}
                    for launch in [*plain, *(launch for launch in even if launch.kernel.__name__ not in names)]:
                        used = usage(launch, arch)
                        loads = ""
                        if reads_weights(launch):
                            widths = [_weight_load(launches, arch) for launches in (even, uneven)]
                            loads = f"{widths[0]:4} / {widths[1]}"
                        print(
                            f"{name:27} {used.kernel.removesuffix('_kernel'):22} {rows:4}  sm_{arch} {dtype:5}  "
                            f"{used.registers:9}  {used.stack:7}  {used.shared / 1024:10.1f}  {loads}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
