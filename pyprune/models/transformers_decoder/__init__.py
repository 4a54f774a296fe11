"""Decoders of families that pyprune does not know, run through their own layers as transformers has them."""
