"""The programs that pyprune's decoding is timed against, each behind one small class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.peers.hugging_face import HuggingFace, HuggingFaceCompiled
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.peer import Absent, Decoding, Peer
from bench.peers.pyprune_engine import PyPrune
from pyprune.models.decoder import Decoder

__all__ = ["Absent", "Decoding", "HuggingFace", "HuggingFaceCompiled", "LlamaCpp", "Peer", "PyPrune", "opened", "peers"]


def peers(folder: Path) -> list[Peer]:
    """Every peer; `folder` is for the files that some of them need."""
    return [HuggingFace(), HuggingFaceCompiled(), LlamaCpp(folder)]


@contextlib.contextmanager
def opened(peer: Peer, decoder: Decoder, batch: int, length: int) -> Iterator[Decoding]:
    """What `peer.open` gives, closed at the end; Absent with the reason where it cannot run."""
    if reason := peer.absent_reason():
        raise Absent(reason)
    decoding = peer.open(decoder, batch, length)
    try:
        yield decoding
    finally:
        decoding.close()
