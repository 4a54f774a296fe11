"""Named measuring protocols, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pyprune.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """How latency, throughput and perplexity are taken.

    A batch of M prompts of `input_tokens` each is turned into M*L new tokens, L from `output_tokens`; that takes the
    latency T in seconds, and M*L/T is the throughput in tokens/s (the paper, section 4). The first `warmups` rounds are
    dropped and `runs` kept. Perplexity is taken on at most `evaluation_tokens` held-out tokens in windows of
    `evaluation_window`.
    """

    name: str
    input_tokens: int
    output_tokens: tuple[int, ...]
    warmups: int
    runs: int
    evaluation_tokens: int
    evaluation_window: int = 128

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output_tokens": list(self.output_tokens)}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # A look at the machine in minutes; three runs show a spread but are too few for small differences.
        Protocol("quick", input_tokens=12, output_tokens=(16,), warmups=1, runs=3, evaluation_tokens=4096),
        # The paper's section 4 and Figure 2: 12 input tokens, 20 runs after 10 warm-ups. 32768 tokens are 256 windows.
        Protocol("paper", input_tokens=12, output_tokens=(128, 512), warmups=10, runs=20, evaluation_tokens=32768),
    )
}


def protocol_named(name: str | Protocol) -> Protocol:
    """The protocol of that name (a Protocol is returned as it is); InputError names the known ones."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r}: {' or '.join(PROTOCOLS)} is expected")
    return PROTOCOLS[name]
