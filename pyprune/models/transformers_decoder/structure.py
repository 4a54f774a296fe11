"""Finding the layers of a model in one run of it: embedding, layers, what follows them, head.

No family is known here. Every call of every module in one ordinary forward pass is noted. The layers are the
ModuleList whose modules each run once, in order, each on the hidden state that the one before has returned. What
follows them is the chain of modules that leads from the last layer's output to the head's input: the final norm, in
some families a projection too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprune.errors import InputError
from pyprune.models.transformers_decoder.logits import LogitMap
from pyprune.models.transformers_decoder.trees import Path, leaves, same_tensor


@dataclass(frozen=True)
class LayerCall:
    """How the model calls a layer: the path of the hidden state in its arguments `(args, kwargs)`, and how many values
    it returns, the hidden state first; 0 where it returns that alone."""

    hidden: Path
    returned: int


@dataclass(frozen=True)
class Structure:
    """The parts of a model, all of them the model's own modules.

    `layers_name`: the name of the list of layers. `tail`: what follows the last layer, each on the output of the one
    before, and `tail_scale` a factor behind them (MiniCPM). `head`: from there to logits of `vocab_size` ids, which
    `logits` turns into the model's. Hidden states have `hidden_size` values of `state_dtype`.
    """

    layers_name: str
    layers: nn.ModuleList
    calls: tuple[LayerCall, ...]
    tail: tuple[nn.Module, ...]
    head: nn.Linear
    logits: LogitMap
    hidden_size: int
    vocab_size: int
    state_dtype: torch.dtype
    tail_scale: float = 1.0

    def final(self, x: Tensor) -> Tensor:
        """What the head reads of states `[N, T, hidden]` behind the last layer."""
        for module in self.tail:
            x = module(x)
        return x if self.tail_scale == 1 else x * self.tail_scale


@dataclass(frozen=True)
class _Call:
    """One call of a module: its place in the order of beginnings, its arguments and what it has returned."""

    name: str
    module: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    output: Any


@dataclass(frozen=True)
class Trace:
    """One ordinary forward pass: the calls of all modules in the order in which they ended, and the logits."""

    calls: list[_Call]
    logits: Tensor


def find_structure(model: Any, trace: Trace, shape: tuple[int, int]) -> Structure:
    """The structure of a model, from a trace of it over ids of `shape` (batch and tokens, which differ from each other
    and from the hidden size).

    InputError, with the reason, where no list of layers maps a hidden state `[batch, tokens, hidden]` to the next, or
    where something other than modules stands between the last layer and the head.
    """
    name, layers, calls = _layers(model, trace, shape)
    states = [state for call in calls if (state := _first_hidden(call.output)) is not None]
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise InputError(
            f"{label(model)}: it names no head (get_output_embeddings); a causal language model is expected"
        )
    head_calls = [call for call in trace.calls if call.module is head]
    if len(head_calls) != 1:
        raise InputError(f"{label(model)}: its head runs {len(head_calls)} times in one forward pass; once is expected")
    head_input = next((leaf for _, leaf in leaves(head_calls[0].inputs) if isinstance(leaf, Tensor)), None)
    chain = None if head_input is None else _chain(trace, states[-1], head_input)
    if chain is None or head_input is None:
        raise InputError(
            f"{label(model)}: between its last layer and its head is more than modules that map the hidden state;"
            " a final norm is expected there"
        )
    layer_calls = tuple(
        LayerCall(path, len(call.output) if isinstance(call.output, (tuple, list)) else 0)
        for call, before in zip(calls, [None, *states[:-1]], strict=True)
        if (path := _hidden_path(call, before)) is not None
    )
    raw = head_calls[0].output
    if not isinstance(raw, Tensor) or raw.shape != trace.logits.shape:
        raise InputError(f"{label(model)}: its logits are not its head's output, nor a scale or a cap of it")
    if not isinstance(head, nn.Linear) or not torch.allclose(F.linear(head_input, head.weight, head.bias), raw):
        raise InputError(f"{label(model)}: its head is a {type(head).__name__}; a linear map is expected")
    return Structure(
        layers_name=name,
        layers=layers,
        calls=layer_calls,
        tail=chain[0],
        head=head,
        logits=LogitMap.between(raw, trace.logits, model),
        hidden_size=states[0].shape[-1],
        vocab_size=head.weight.shape[0],
        state_dtype=states[0].dtype,
        tail_scale=chain[1],
    )


@torch.no_grad()
def traced(model: Any, input_ids: Tensor) -> Trace:
    """One ordinary forward pass over `input_ids [N, T]` with every call of every module noted."""
    calls: list[_Call] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(names[module], module, (args, kwargs), output))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in names if module is not model]
    try:
        return Trace(calls, ordinary_logits(model, input_ids))
    finally:
        for hook in hooks:
            hook.remove()


def ordinary_logits(model: Any, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The logits `[N, T, vocabulary]` of one forward pass as the model's users make it, without a cache."""
    output = model(**forward_arguments(model, input_ids, mask))
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != input_ids.shape:
        raise InputError(
            f"{label(model)}: its forward pass returns no logits for each token; a causal model is expected"
        )
    return logits


def forward_arguments(model: Any, input_ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """What a model's `forward` is given: ids, the mask where there is one, and that no cache is wanted."""
    accepted = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"input_ids": input_ids}
    if mask is not None:
        if "attention_mask" not in accepted:
            raise InputError(f"attention_mask: {label(model)} takes none; samples without padding are expected")
        arguments["attention_mask"] = mask.long()
    if "use_cache" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        arguments["use_cache"] = False
    return arguments


def label(model: Any) -> str:
    """The class of a model, as errors name it."""
    return type(model).__name__


def _layers(model: Any, trace: Trace, shape: tuple[int, int]) -> tuple[str, nn.ModuleList, list[_Call]]:
    """The list of layers with its name and the layers' calls: the longest that fits."""
    reasons: dict[int, str] = {}  # by how many layers they speak of
    best: tuple[str, nn.ModuleList, list[_Call]] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        layers = list(module)
        calls = [call for call in trace.calls if any(call.module is layer for layer in layers)]
        reason = _why_not(layers, calls, shape)
        if reason is not None:
            reasons.setdefault(len(layers), f"{name}: {reason}")
        elif best is None or len(layers) > len(best[1]):
            best = name, module, calls
    longest = max(reasons, default=0)
    if best is None or longest > len(best[1]):
        reason = reasons[longest] if reasons else "it has no ModuleList of layers"
        raise InputError(f"{label(model)}: not a list of layers that map a hidden state to the next ({reason})")
    return best


def _why_not(layers: list[nn.Module], calls: list[_Call], shape: tuple[int, int]) -> str | None:
    """Why these are no layers that map a hidden state `[batch, tokens, hidden]` to the next; None where they are."""
    if not calls:
        return "its modules do not run"
    if [id(call.module) for call in calls] != [id(layer) for layer in layers]:
        return "its modules do not run once each, in order"
    previous = None
    for position, call in enumerate(calls):
        output = _first_hidden(call.output)
        if output is None or tuple(output.shape[:2]) != shape or output.dim() != 3:
            returned = "nothing" if output is None else str(list(output.shape))
            return f"layer {position} returns {returned} where [batch, tokens, hidden] is expected"
        if previous is not None and output.shape != previous.shape:
            return f"layer {position} returns {list(output.shape)} for {list(previous.shape)}"
        if _hidden_path(call, previous) is None:
            between = "the embedding" if position == 0 else f"layer {position - 1}"
            return f"layer {position} is not given the hidden state that {between} returns"
        previous = output
    return None


def _hidden_path(call: _Call, previous: Tensor | None) -> Path | None:
    """Where in a layer's arguments the hidden state is: what the layer before has returned, for the first layer the
    first that has the output's shape."""
    output = _first_hidden(call.output)
    for path, leaf in leaves(call.inputs):
        is_state = isinstance(leaf, Tensor) and output is not None and leaf.shape == output.shape
        if previous is None and is_state and leaf.is_floating_point():
            return path
        if previous is not None and same_tensor(leaf, previous):
            return path
    return None


def _first_hidden(output: Any) -> Tensor | None:
    """The hidden state that a layer returns: alone, or first of a tuple."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _chain(trace: Trace, start: Tensor | None, end: Tensor | None) -> tuple[tuple[nn.Module, ...], float] | None:
    """The fewest modules that lead from one tensor to another, each given the output of the one before alone, and the
    factor that follows them."""
    waiting: list[tuple[Tensor | None, tuple[nn.Module, ...]]] = [(start, ())]
    reached = []
    while waiting:
        tensor, modules = waiting.pop(0)
        if _same_memory(tensor, end):
            return modules, 1.0
        reached.append((tensor, modules))
        for call in _calls_on(trace, tensor):
            if call.module not in modules:
                waiting.append((call.output, (*modules, call.module)))
    for tensor, modules in reached:
        factor = _factor(tensor, end)
        if factor is not None:
            return modules, factor
    return None


def _factor(tensor: Tensor | None, product: Tensor | None) -> float | None:
    """The number that one tensor is a multiple of the other by; None where it is not."""
    if tensor is None or product is None or tensor.shape != product.shape:
        return None
    x, y = tensor.double(), product.double()
    factor = float((x * y).sum() / (x * x).sum())
    for exact in (round(factor), 1 / round(1 / factor) if abs(factor) > 1e-9 and round(1 / factor) else factor):
        factor = exact if exact and abs(exact - factor) < 1e-6 * abs(factor) else factor
    tolerance = 4 * torch.finfo(product.dtype).eps * y.abs().max()
    return factor if bool(((factor * x - y).abs() <= tolerance).all()) else None


def _calls_on(trace: Trace, tensor: Tensor | None) -> Iterator[_Call]:
    """The calls on a tensor and nothing else that give a tensor of as many rows."""
    for call in trace.calls:
        args, kwargs = call.inputs
        alone = len(args) == 1 and not kwargs and same_tensor(args[0], tensor)
        if alone and isinstance(call.output, Tensor) and call.output.shape[:2] == args[0].shape[:2]:
            yield call


def _same_memory(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are one, or views of it that hold all of it."""
    return a is not None and b is not None and a.shape == b.shape and a.data_ptr() == b.data_ptr()
