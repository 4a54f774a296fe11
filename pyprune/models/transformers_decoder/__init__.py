"""Decoders of families that pyprune does not know, run through their own layers as transformers has them."""

from __future__ import annotations

from pyprune.models.transformers_decoder.decoder import LayerBlock, TransformersDecoder

__all__ = ["LayerBlock", "TransformersDecoder"]
