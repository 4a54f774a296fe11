"""Triton's interpreter without work that it repeats: most of its time goes into descriptions of types, not values.

It reaches into Triton 3.9. Other versions are left as they are, and slow.
"""

from __future__ import annotations

import functools
import math
from importlib.metadata import version
from typing import Any

import numpy


def install() -> None:
    """Before the first kernel runs, in a process that interprets."""
    if not version("triton").startswith("3.9."):
        return
    _patch_the_language_once()
    _describe_each_type_once()
    _find_the_types_of_tuples_when_asked()
    _look_for_overflows_in_numpy()


def _patch_the_language_once() -> None:
    """Not anew at every call of a function by a kernel, for which the interpreter goes through all of its members."""
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def once(function: Any) -> object:
        seen = [value for value in function.__globals__.values() if value is language or value is language.core]
        patched = seen and not any(language.core.is_builtin(module.load) for module in seen)
        return interpreter._LangPatchScope() if patched else patch(function)

    interpreter._patch_lang = once


def _describe_each_type_once() -> None:
    """A block's type by its element and shape; NumPy's type and a tensor's shape by the type."""
    from triton.language import core
    from triton.runtime import interpreter

    make_block, numpy_type = core.block_type.__init__, interpreter._get_np_dtype
    blocks: dict[tuple, dict[str, Any]] = {}
    numpy_types: dict[tuple, Any] = {}

    @functools.wraps(make_block)
    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, core.constexpr) else size for size in shape])
        key = (type(element_ty), element_ty.name, sizes)
        if key in blocks:
            self.__dict__.update(blocks[key])
        else:
            make_block(self, element_ty, shape)
            blocks[key] = dict(self.__dict__)

    @functools.wraps(numpy_type)
    def once(of: Any) -> Any:
        key = (type(of), of.name)
        if key not in numpy_types:
            numpy_types[key] = numpy_type(of)
        return numpy_types[key]

    @functools.cache
    def constants(shape: tuple[int, ...]) -> tuple[Any, tuple]:
        return core.constexpr(math.prod(shape)), tuple(map(core.constexpr, shape))

    def tensor(self: Any, handle: object, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = constants(type.shape if type.is_block() else ())

    core.block_type.__init__, interpreter._get_np_dtype, core.tensor.__init__ = block_type, once, tensor


def _find_the_types_of_tuples_when_asked() -> None:
    """The interpreter makes a tuple of every shape and asks few of them for their types."""
    from triton.language import core

    make = core.tuple.__init__

    def later(self: Any, args: Any, type: Any = None) -> None:
        if type is None:
            self.values = list(args)
        else:
            make(self, args, type)

    compare, equal = core.tuple.__eq__, core.constexpr(True)

    def same(self: Any, other: Any) -> Any:  # shapes, mostly, of blocks whose type is one
        return equal if self is other else compare(self, other)

    def get_type(self: Any) -> Any:
        if "type" not in self.__dict__:
            self.__dict__["type"] = core._type_for_tuple_values(self.values)
        return self.__dict__["type"]

    def set_type(self: Any, type: Any) -> None:
        self.__dict__["type"] = type

    core.tuple.__init__, core.tuple.__eq__, core.tuple.type = later, same, property(get_type, set_type)


def _look_for_overflows_in_numpy() -> None:
    """Of integers of 32 bits and less, as the interpreter does by five operations of its own."""
    from triton.language.semantic import TritonSemantic

    compute = {"add": numpy.add, "sub": numpy.subtract, "mul": numpy.multiply}

    def check(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        of = lhs.type.scalar
        if of.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
            return
        exact = compute[operation.__name__](lhs.handle.data.astype(numpy.int64), rhs.handle.data.astype(numpy.int64))
        if exact.min() < of.get_int_min_value() or exact.max() > of.get_int_max_value():
            raise OverflowError(f"{of} overflow detected for operation {operation.__name__}")

    TritonSemantic.binary_op_sanitize_overflow_impl = check
