"""The arguments of a layer as a flat list of leaves, each with the path to it.

Leaves are whatever is no tuple, list or dict. A path is the keys on the way: `(0, 3)` is the fourth positional
argument, `(1, "position_embeddings", 0)` the first of a pair that is passed by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Types of leaves that are compared by value."""


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path, in order."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, (tuple, list)):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    else:
        yield path, tree


def mapped(tree: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same tree with `change(path, leaf)` in each leaf's place."""
    if isinstance(tree, dict):
        return type(tree)((key, mapped(value, change, (*path, key))) for key, value in tree.items())
    if isinstance(tree, (tuple, list)):
        items = [mapped(value, change, (*path, index)) for index, value in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return change(path, tree)


def same_tensor(a: Any, b: Any) -> bool:
    """Whether both are one tensor, or views of the same memory in the same shape."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return a is b or (a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr())


def equal_leaves(a: Any, b: Any) -> bool:
    """Whether two leaves say the same: tensors by their values, plain ones by theirs, others by identity."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, PLAIN) and isinstance(b, PLAIN):
        return a == b
    return a is b


def written(path: Path) -> str:
    """A path as a person reads it: `position_embeddings[0]`, or "argument 2" where it has no name."""
    kind, *rest = path
    first, *rest = rest
    name = f"argument {first}" if kind == 0 else str(first)
    return name + "".join(f"[{key}]" for key in rest)
