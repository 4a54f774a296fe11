"""Any decoder as the layer-major pass takes it."""

from __future__ import annotations

from pyprune.models.decoder import Decoder
from pyprune.models.load_any import AnyDecoder
from pyprune.models.transformers_decoder import TransformersDecoder
from pyprune.scoring.layered_decoder import LayeredDecoder
from pyprune.scoring.layered_model import LayeredModel
from pyprune.scoring.layered_transformers import LayeredTransformers


def as_layered(model: AnyDecoder | LayeredModel) -> LayeredModel:
    """The model as the layer-major pass takes it: decoders wrapped, anything else as it is."""
    if isinstance(model, Decoder):
        return LayeredDecoder(model)
    return LayeredTransformers(model) if isinstance(model, TransformersDecoder) else model
