"""The likelihood of the next token where leading blocks do not train: these run by the operators for inference."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from pyprune.models.decoder import Decoder
from pyprune.retraining.objectives.next_token import NextToken
from pyprune.retraining.prefix import frozen_blocks, padding_mask, states_behind
from pyprune.retraining.samples import Batch
from pyprune.runtime import sequence


@dataclass(frozen=True, kw_only=True)
class NextTokenBehindFrozen(NextToken):
    """NextToken of a model whose embedding and first blocks stay those of `decoder`, before the training."""

    decoder: Decoder = field(repr=False)

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """As `last_states`."""
        blocks = min(frozen_blocks(model), len(self.decoder.blocks) - 1)  # the last one is always run
        if not blocks:
            return states_behind(model, batch)
        with torch.no_grad(), torch.autocast(self.decoder.device.type, enabled=False):
            prefix = self._stream(batch, blocks)
        return states_behind(model, batch, prefix, blocks)

    def _stream(self, batch: Batch, blocks: int) -> Tensor:
        """The stream behind so many blocks."""
        decoder, ids = self.decoder, batch["input_ids"]
        mask = padding_mask(batch, decoder.device)
        cos, sin = decoder.rope.tables(ids.shape[1], prompt=ids.shape[1])
        x = sequence.embed(decoder, ids)
        for block in islice(decoder.blocks, blocks):
            x = sequence.run_block(block, x, cos, sin, decoder.eps, mask)
        return x
