"""A `TransformersDecoder` as the layer-major pass takes it: the model's own layers, called as the model calls them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyprune import ops
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.models.transformers_decoder.inputs import LayerInputs
from pyprune.models.transformers_decoder.structure import Structure
from pyprune.scoring.cost import Costs
from pyprune.scoring.footprint import VOCABULARY_TILE
from pyprune.scoring.layered_model import RunSublayer
from pyprune.scoring.losses import IGNORED


@dataclass(frozen=True)
class LayeredTransformers:
    """A decoder of any family behind `LayeredModel`, which explains its members. Whole layers are its smallest units:
    layer b is sublayer 2b."""

    decoder: TransformersDecoder

    sublayers_per_block = 1
    streamed = False

    @property
    def name(self) -> str:
        return self.decoder.name

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        return self.decoder.structure.state_dtype

    @property
    def hidden_size(self) -> int:
        return self.decoder.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.decoder.structure.vocab_size

    @property
    def block_count(self) -> int:
        return len(self.decoder.blocks)

    @property
    def block_indices(self) -> tuple[int, ...]:
        return tuple(block.index for block in self.decoder.blocks)

    @property
    def present(self) -> frozenset[int]:
        return frozenset(range(0, 2 * self.block_count, 2))

    def costs(self, tokens: int) -> Costs:
        """Every matrix of a layer counts once; of a list of experts, those that a token goes to."""
        layers = {2 * place: _multiplications(block.layer) for place, block in enumerate(self.decoder.blocks)}
        return Costs(layers, self.hidden_size * self.vocab_size)

    def row_bytes(self, tokens: int, padded: bool) -> int:
        """An estimate: what every module of the widest layer gives, all of it held at once, attention's scores where
        they are made, and the masks."""
        return self._widest_row + tokens * (8 * self._score_heads + 8)

    def streamed_bytes(self) -> int:
        return 0

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.reshape(-1) if tensor.dim() == 0 else tensor) for name, tensor in self.decoder.tensors())

    def on(self, input_ids: Tensor, mask: Tensor | None) -> TransformersSamples:
        return TransformersSamples(self.decoder, input_ids, mask)

    @cached_property
    def _widest_row(self) -> int:
        size = max(self.state_dtype.itemsize, 4)
        outputs = (_outputs(block.layer) for block in self.decoder.blocks)
        return size * (max(outputs) + 4 * self.hidden_size)

    @cached_property
    def _score_heads(self) -> int:
        """Attention heads whose scores `[T, T]` are written out, as the eager implementation does."""
        config = self.decoder.model.config.get_text_config(decoder=True)
        fused = config._attn_implementation in ("sdpa", "flash_attention_2", "flex_attention")
        return 0 if fused else getattr(config, "num_attention_heads", None) or 0


class TransformersSamples:
    """A model on the samples of one pass: `SamplesPass`. The model makes masks, positions and embeddings here, once."""

    def __init__(self, decoder: TransformersDecoder, input_ids: Tensor, mask: Tensor | None) -> None:
        self._structure, self._blocks = decoder.structure, decoder.blocks
        self._mask = None if mask is None else mask.to(decoder.device)
        self._inputs = LayerInputs(decoder.model, decoder.structure, input_ids.to(decoder.device), self._mask)

    def embed(self, into: Tensor) -> None:
        into.copy_(self._inputs.embedded)

    def blocks(self, first: int) -> Iterator[TransformersBlock]:
        return (TransformersBlock(self, place, self._blocks[place].index) for place in range(first, len(self._blocks)))

    def run(self, place: int, x: Tensor, samples: Sequence[int]) -> Tensor:
        """The states behind a layer."""
        return self._inputs.call(place, x, samples)

    def final(self, x: Tensor) -> Tensor:
        return self._structure.final(x)

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        return last_losses(self._structure, x, targets)

    def logits(self, final: Tensor, start: int, stop: int) -> Tensor:
        return tile_of_logits(self._structure, final, start, stop)

    def mask(self, samples: Sequence[int]) -> Tensor | None:
        return None if self._mask is None else self._mask[list(samples)]


@dataclass(frozen=True)
class TransformersBlock:
    """One layer on the samples of a pass: `BlockPass`."""

    samples: TransformersSamples
    place: int
    index: int

    def sublayer(self, offset: int) -> RunSublayer | None:
        if offset:
            return None
        return lambda x, samples: self.samples.run(self.place, x, samples)

    def mask(self, samples: Sequence[int]) -> Tensor | None:
        return self.samples.mask(samples)


def last_losses(structure: Structure, x: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) of states behind the last layer `[N, T, hidden]`: float32 `[N, T]`, 0 where the target is -100.

    In float32 a factor of the logits goes into the states and the fused operator does the rest. Otherwise logits are
    made a tile of the vocabulary at a time, as the model makes them.
    """
    final, logits = structure.final(x), structure.logits
    weight = structure.head.weight.detach()
    bias: Tensor | None = structure.head.bias
    if logits.cap is None and final.dtype == torch.float32 == weight.dtype:
        if logits.scale != 1:
            final, bias = final * logits.scale, None if bias is None else bias * logits.scale
        return ops.linear_cross_entropy(final.contiguous(), weight, targets.contiguous(), None, 0.0, bias)
    wide = torch.float64 if final.dtype == torch.float64 else torch.float32
    sums, own = [], torch.zeros(targets.shape, dtype=wide, device=final.device)
    for start in range(0, weight.shape[0], VOCABULARY_TILE):
        stop = min(start + VOCABULARY_TILE, weight.shape[0])
        tile = tile_of_logits(structure, final, start, stop)
        sums.append(tile.logsumexp(-1))
        place = (targets - start).clamp(0, stop - start - 1)
        here = (targets >= start) & (targets < stop)
        own += torch.where(here, tile.gather(-1, place[..., None]).squeeze(-1), 0)
    losses = torch.stack(sums).logsumexp(0) - own
    return torch.where(targets == IGNORED, 0, losses).float()


def tile_of_logits(structure: Structure, final: Tensor, start: int, stop: int) -> Tensor:
    """The model's logits of the ids start .. stop-1: float32 `[..., stop-start]` (float64 in float64)."""
    head = structure.head
    bias = None if head.bias is None else head.bias[start:stop]
    tile = structure.logits(F.linear(final, head.weight[start:stop], bias))
    return tile if tile.dtype == torch.float64 else tile.float()


def _multiplications(layer: nn.Module) -> int:
    """Of one token: every weight once, of a list of experts as many as a token is sent to."""
    total = 0
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            share = _experts_share(module, parameter)
            total += int(parameter.numel() * share) if parameter.dim() > 1 else 0
    return max(total, 1)


def _outputs(layer: nn.Module) -> int:
    """The values that all modules of a layer give for one token together, in matrices' output sizes."""
    total = 0
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1:
                # A list of experts: each token's copies, before and behind the expert.
                copies = (
                    max(1, round(_experts_share(module, parameter) * parameter.shape[0])) if parameter.dim() == 3 else 1
                )
                total += copies * (max(parameter.shape[-2:]) if parameter.dim() == 3 else max(parameter.shape))
    return 2 * total


def _experts_share(module: nn.Module, parameter: Tensor) -> float:
    """The share of a module's experts `[experts, ., .]` that one token goes to; 1 for any other parameter."""
    if parameter.dim() != 3:
        return 1.0
    config = getattr(module, "config", None)
    chosen = next((getattr(config, name) for name in _CHOSEN if isinstance(getattr(config, name, None), int)), None)
    return 1.0 if chosen is None else min(1.0, chosen / parameter.shape[0])


_CHOSEN = ("num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_k", "top_k")
"""What configurations call the number of experts that a token goes to."""
