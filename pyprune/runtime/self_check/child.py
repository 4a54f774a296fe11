"""Does a part of the self-check: `python -m pyprune.runtime.self_check.child ORDERS`, ORDERS being JSON.

It reports each item before and after, a line each, so that the one that ends or halts this process is known.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, dataclass
from typing import IO, Any

import torch

from pyprune import ops
from pyprune.runtime.self_check.schedule import jobs

BROKEN = 3
"""Exit code: after an item the device did not work any more, so that another process must go on."""


@dataclass(frozen=True)
class Orders:
    """device: where. numbers: which items, in the order of `jobs`. out: the file of the reports. small: of `jobs`.

    replaced: `module:name` of a mapping of operators that run instead of pyprune's (a dry run).
    """

    device: str
    numbers: list[int]
    out: str
    small: bool = False
    replaced: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(argv: list[str]) -> int:
    """Check the items; 0 when all were reached, whatever the verdicts."""
    orders = Orders(**json.loads(argv[0]))
    if orders.replaced is not None:
        module, name = orders.replaced.split(":")
        for operator, function in getattr(importlib.import_module(module), name).items():
            setattr(ops, operator, function)
    if orders.device != "cpu":
        torch.cuda.set_device(torch.device(orders.device))
    items = [item for job in jobs(orders.small) for item in job]
    with open(orders.out, "a", encoding="utf-8") as out:
        for number in orders.numbers:
            _report(out, {"trying": number})
            result = items[number].check(orders.device)
            _report(out, {"done": number, "result": result})
            if result["exception"] is not None and not _device_works(orders.device):
                return BROKEN
    return 0


def _report(out: IO[str], report: dict[str, Any]) -> None:
    out.write(json.dumps(report) + "\n")
    out.flush()


def _device_works(device: str) -> bool:
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError:  # after a bad access a CUDA context serves no more
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
