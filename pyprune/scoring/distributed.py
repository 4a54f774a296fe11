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

TIMEOUT = 600.0
"""Seconds in which all processes have to come together: one may load its model much faster than another."""

_ANNOUNCEMENT_BYTES = 1024


def is_launched() -> bool:
    """Whether this process was started as one of several, by torchrun or in its way."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_group(device: torch.device, distributed: bool | None = None) -> ProcessGroup:
    """The processes that share the work of this one: those of torch's process group, which is initialised here where
    torchrun has started this process.

    distributed: False for this process alone; True where being alone is an error. InputError then, WorkerLost when not
    all of them come.
    """
    if distributed is False or not dist.is_available():
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if not is_launched():
            if distributed:
                raise InputError(
                    "distributed: True given, but neither torchrun nor init_process_group started other processes"
                )
            return SINGLE_PROCESS
        _init_process_group(device)
    return _torch_process_group(device) if dist.get_world_size() > 1 else SINGLE_PROCESS


class TorchProcessGroup(ProcessGroup):
    """The processes of torch's default process group, each watched by a `LivenessMonitor`."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device if "nccl" in str(dist.get_backend()) else torch.device("cpu")
        address = os.environ.get("MASTER_ADDR") or socket.gethostname()
        self._monitor = LivenessMonitor(self.rank, self.size, self._announce, address, TIMEOUT)

    def check(self) -> None:
        self._monitor.check()

    def require_same_call(self, subject: str) -> None:
        local = torch.frombuffer(bytearray(hashlib.sha256(subject.encode()).digest()), dtype=torch.uint8)
        rank_zero = local.clone()
        self.broadcast(rank_zero)
        if not torch.equal(local, rank_zero):
            raise InputError(
                f"rank {self.rank} was given other weights, tokens or options than rank 0; all processes have to make"
                " the same call (distributed=False works alone)"
            )

    def all_reduce(self, *tensors: Tensor) -> None:
        self._monitor.barrier()
        for tensor in tensors:
            self._run_collective(dist.all_reduce, tensor, self._monitor)

    def broadcast(self, *tensors: Tensor) -> None:
        self._monitor.barrier()
        for tensor in tensors:
            self._run_collective(functools.partial(dist.broadcast, src=0), tensor, self._monitor)

    def send_to_rank_zero(self, entry: dict[str, Any]) -> None:
        self._monitor.send_entry(entry)

    def on_entry(self, callback: Callable[[dict[str, Any]], None]) -> None:
        self._monitor.on_entry = callback

    def fail(self, reason: str) -> None:
        self._monitor.close(reason)

    def leave(self) -> None:
        """Leave the others without a failure."""
        self._monitor.close()

    def _run_collective(self, collective: Callable[..., Any], tensor: Tensor, monitor: LivenessMonitor | None) -> None:
        """Run a collective in place while `monitor` watches the others: alone it waits TIMEOUT for a machine that fell
        silent, and does not say which process was lost."""
        as_bytes = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
        buffer = as_bytes.to(self._device)
        deadline = time.monotonic() + TIMEOUT
        try:
            work = collective(buffer, async_op=True)
            while not work.is_completed():
                if monitor is not None:
                    monitor.check(leaving=False)
                if time.monotonic() > deadline:
                    raise WorkerLost(f"rank 0 did not come within {TIMEOUT:.0f} s; every process has to make the call")
                time.sleep(0.002)
            work.wait()
        except WorkerLost:
            raise
        except RuntimeError as error:
            if monitor is not None:
                monitor.wait_for_loss(5.0)  # it says which process was lost
            raise WorkerLost(f"the connection to another process broke: {error}") from None
        if buffer.data_ptr() != tensor.data_ptr():
            as_bytes.copy_(buffer)

    def _announce(self, text: str) -> str:
        """The text that rank 0 calls this with, in every process, before there is a monitor."""
        buffer = torch.zeros(_ANNOUNCEMENT_BYTES, dtype=torch.uint8)
        encoded = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        buffer[: len(encoded)] = encoded
        self._run_collective(functools.partial(dist.broadcast, src=0), buffer, None)
        return bytes(buffer.tolist()).rstrip(b"\0").decode()


@functools.cache
def _torch_process_group(device: torch.device) -> TorchProcessGroup:
    """The group of this process, connected once."""
    group = TorchProcessGroup(device)
    atexit.register(group.leave)
    return group


def _init_process_group(device: torch.device) -> None:
    """Initialise torch's process group as torchrun has laid it out."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise WorkerLost(f"the processes of torchrun could not come together: {error}") from None
    atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    with contextlib.suppress(Exception):  # at exit nothing can be done about it
        dist.destroy_process_group()
