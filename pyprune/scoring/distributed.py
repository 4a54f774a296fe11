"""Scoring by several processes, on one machine or many, under torch.distributed.

    torchrun --nproc-per-node 2 -m pyprune score MODEL --out scores.json

All processes make the same calls; each computes its share of the candidates and samples, and the sums are added up in
float64, so that all get the same result. gloo on CPUs. On GPUs NCCL by the same code, which has not run yet.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyprune.errors import InputError
from pyprune.scoring.liveness import LivenessMonitor
from pyprune.scoring.process_group import SINGLE_PROCESS, ProcessGroup, WorkerLost

PATIENCE = 600.0
"""Seconds in which all processes have to come together: one may load its model much faster than another."""


def launched() -> bool:
    """Whether this process was started as one of several, by torchrun or in its way."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_group(device: torch.device, distributed: bool | None = None) -> ProcessGroup:
    """The processes that share the work of this one: those of torch's process group, which is begun where torchrun has
    started this process.

    distributed: False for none but this one; True where that is an error. InputError then, WorkerLost when not all of
    them come.
    """
    if distributed is False or not dist.is_available():
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if not launched():
            if distributed:
                raise InputError("distributed: True given, but neither torchrun nor init_process_group began others")
            return SINGLE_PROCESS
        _begin(device)
    return _ranks(device) if dist.get_world_size() > 1 else SINGLE_PROCESS


class Ranks(ProcessGroup):
    """The processes of torch's default process group."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device if "nccl" in str(dist.get_backend()) else torch.device("cpu")
        self._liveness: LivenessMonitor | None = None
        address = os.environ.get("MASTER_ADDR") or socket.gethostname()
        self._liveness = LivenessMonitor(self.rank, self.size, self._tell, address, PATIENCE)

    def check(self) -> None:
        self._liveness.check()

    def require_same_call(self, subject: str) -> None:
        mine = torch.frombuffer(bytearray(hashlib.sha256(subject.encode()).digest()), dtype=torch.uint8)
        others = mine.clone()
        self.broadcast(others)
        if not torch.equal(mine, others):
            raise InputError(
                f"rank {self.rank} was given other weights, tokens or options than rank 0; all processes have to make"
                " the same call (distributed=False works alone)"
            )

    def all_reduce(self, *tensors: Tensor) -> None:
        self._liveness.wait_for_all()
        for tensor in tensors:
            self._collect(tensor, dist.all_reduce)

    def broadcast(self, *tensors: Tensor) -> None:
        self._liveness.wait_for_all()
        for tensor in tensors:
            self._collect(tensor, functools.partial(dist.broadcast, src=0))

    def send_to_rank_zero(self, entry: dict[str, Any]) -> None:
        self._liveness.send_entry(entry)

    def listen(self, take: Callable[[dict[str, Any]], None]) -> None:
        self._liveness.on_entry = take

    def fail(self, why: str) -> None:
        self._liveness.close(why)

    def leave(self) -> None:
        """Part in peace."""
        self._liveness.close()

    def _collect(self, tensor: Tensor, collective: Callable[..., Any]) -> None:
        """Run a collective in place, watching the others: on its own it would wait for a dead one for half an hour."""
        bytes_of_bool = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
        buffer = bytes_of_bool.to(self._device)
        until = time.monotonic() + PATIENCE
        try:
            work = collective(buffer, async_op=True)
            while not work.is_completed():
                if self._liveness is not None:
                    self._liveness.check(leaving=False)
                if time.monotonic() > until:
                    raise WorkerLost(f"rank 0 did not come within {PATIENCE:.0f} s; every process has to make the call")
                time.sleep(0.002)
            work.wait()
        except WorkerLost:
            raise
        except RuntimeError as error:
            if self._liveness is not None:
                self._liveness.wait_lost(5.0)  # it says who
            raise WorkerLost(f"the connection to another process broke: {error}") from None
        if buffer.data_ptr() != tensor.data_ptr():
            bytes_of_bool.copy_(buffer)

    def _tell(self, text: str) -> str:
        """What rank 0 calls this with."""
        room = torch.zeros(1024, dtype=torch.uint8)
        encoded = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        room[: len(encoded)] = encoded
        self._collect(room, functools.partial(dist.broadcast, src=0))
        return bytes(room.tolist()).rstrip(b"\0").decode()


@functools.cache
def _ranks(device: torch.device) -> Ranks:
    """The group of this process, connected once."""
    group = Ranks(device)
    atexit.register(group.leave)
    return group


def _begin(device: torch.device) -> None:
    """Begin torch's process group as torchrun has laid it out."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE))
    except (RuntimeError, ValueError) as error:
        raise WorkerLost(f"the processes of torchrun could not come together: {error}") from None
    atexit.register(_end)


def _end() -> None:
    with contextlib.suppress(Exception):  # at exit nothing can be done about it
        dist.destroy_process_group()
