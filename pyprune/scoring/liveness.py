"""A liveness monitor: every process keeps a connection to rank 0, so that all learn at once, and by name, of one that
died.

torchrun alone ends the other processes of the same machine, but leaves those of other machines running: their agents
do not hear of it, and gloo notices only inside a collective, which comes at the end of all parts. Measured with two
torchrun agents (`--nnodes 2`) on one machine, rank 1 killed by SIGKILL while rank 0 computed a part: without the
monitor rank 0 ended 99 s later, when the part was done and the next collective said "Connection closed by peer"; with
it 0.2 s later, naming the process. With one agent, or while rank 0 waited inside a collective, it ended within 0.2 s
either way. So the monitor is for machines that compute, for minutes or hours, while another one fails. It also carries
the entries of the journal to rank 0.

The system closes a process's connections when it ends, however it ends. A process that is only slow, or stopped, keeps
its connection. A machine that falls silent is found by the system's keep-alive probes, which it answers without the
process (after 11 s; a collective would wait for its timeout of ten minutes. Not measured).

Messages are lines of JSON. To rank 0: hello, arrived, entry, failed, bye. From rank 0: hello, go, lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from pyprune.scoring.process_group import WorkerLost

Announce = Callable[[str], str]
"""Gives every process the text that rank 0 calls it with."""

HELLO_TIMEOUT = 30.0
"""Seconds in which a connection has to be made, or to say whose it is."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""A silent machine is given up after 5 + 3 * 2 seconds."""


class LivenessMonitor:
    """The connections of process `rank` of `size`.

    announce: how the others learn where rank 0 listens, at `address`. timeout: seconds in which all of them have to
    come; the constructor returns when they have. `on_entry` is called in rank 0, from a thread, with what others send.
    """

    def __init__(self, rank: int, size: int, announce: Announce, address: str, timeout: float) -> None:
        self.rank, self.size = rank, size
        self.on_entry: Callable[[dict[str, Any]], None] = lambda entry: None
        self._changed = threading.Condition()
        self._lost: str | None = None
        self._left: str | None = None
        self._barriers_passed = 0
        self._barriers_reached: dict[int, int] = {}  # rank -> barriers that it has come to; in rank 0
        self._peers: dict[int, _Connection] = {}
        self._closing = False
        if rank == 0:
            self._accept_peers(announce, address, timeout)
        else:
            self._connect(announce, timeout)

    def check(self, leaving: bool = True) -> None:
        """Raise WorkerLost when another process is gone; leaving: also when it left because it was done."""
        reason = self._lost or (self._left if leaving else None)
        if reason is not None:
            raise WorkerLost(reason)

    def barrier(self) -> None:
        """Return when every process has called this as often; raise WorkerLost when one is gone instead."""
        with self._changed:
            number = self._barriers_passed + 1
            if self.rank == 0:
                self._barriers_reached[0] = number
                self._release_barrier()
            else:
                self._peers[0].send({"arrived": number})
            while self._barriers_passed < number:
                self.check()
                self._changed.wait(1.0)

    def send_entry(self, entry: dict[str, Any]) -> None:
        """Hand an entry to rank 0, which calls its `on_entry`."""
        self._peers[0].send({"entry": entry})

    def wait_for_loss(self, seconds: float) -> None:
        """Raise WorkerLost if it becomes known within some seconds that another process is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or self._left, seconds)
        self.check()

    def close(self, failure: str | None = None) -> None:
        """Leave, or fail with a reason that the others get."""
        self._closing = True
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.send({"bye": True} if failure is None else {"failed": failure})
            peer.close()

    def _accept_peers(self, announce: Announce, address: str, timeout: float) -> None:
        """In rank 0: announce the address and wait until all others have connected."""
        token = secrets.token_hex(16)
        with _listener(address) as server:
            server.settimeout(timeout)
            announce(json.dumps([address, server.getsockname()[1], token]))
            while len(self._peers) < self.size - 1:
                try:
                    peer = _Connection(server.accept()[0], HELLO_TIMEOUT)
                except TimeoutError:
                    missing = sorted(set(range(1, self.size)) - self._peers.keys())
                    raise WorkerLost(
                        f"rank {', '.join(map(str, missing))} did not come within {timeout:.0f} s; every process has"
                        " to make the same call"
                    ) from None
                hello = peer.receive() or {}
                if hello.get("token") != token or hello.get("rank") not in range(1, self.size):
                    peer.close()  # a stranger
                    continue
                peer.name = f"rank {hello['rank']} (process {hello['process']})"
                self._peers[hello["rank"]] = peer
        for rank, peer in self._peers.items():
            peer.send({"hello": os.getpid()})
            threading.Thread(target=self._receive_all, args=(rank, peer), daemon=True).start()

    def _connect(self, announce: Announce, timeout: float) -> None:
        """In the other ranks: connect to rank 0, and wait until it has heard from all."""
        address, port, token = json.loads(announce(""))
        rank_zero = _Connection(socket.create_connection((address, port), timeout=HELLO_TIMEOUT), timeout)
        rank_zero.send({"rank": self.rank, "process": os.getpid(), "token": token})
        hello = rank_zero.receive()
        if hello is None:
            raise WorkerLost("rank 0 has ended before all processes were connected")
        rank_zero.name = f"rank 0 (process {hello['hello']})"
        self._peers[0] = rank_zero
        threading.Thread(target=self._receive_all, args=(0, rank_zero), daemon=True).start()

    def _receive_all(self, rank: int, peer: _Connection) -> None:
        """Handle the messages of one process until it ends; runs in a thread."""
        peer.wait_without_limit()
        while (message := peer.receive()) is not None:
            if "arrived" in message:
                with self._changed:
                    self._barriers_reached[rank] = message["arrived"]
                    self._release_barrier()
            elif "go" in message:
                with self._changed:
                    self._barriers_passed = message["go"]
                    self._changed.notify_all()
            elif "entry" in message:
                try:
                    self.on_entry(message["entry"])
                except Exception as error:
                    self._set_lost(f"the journal could not be written: {error}")
            elif "lost" in message:
                return self._set_lost(message["lost"])
            elif "failed" in message:
                return self._set_lost(f"{peer.name} failed: {message['failed']}")
            elif "bye" in message:
                return self._set_left(f"{peer.name} has left before the work was done")
        self._set_lost(f"{peer.name} has died")

    def _release_barrier(self) -> None:
        """In rank 0: let all go on when all have arrived."""
        number = self._barriers_passed + 1
        if sum(reached >= number for reached in self._barriers_reached.values()) == self.size:
            self._barriers_passed = number
            for peer in self._peers.values():
                with contextlib.suppress(OSError):  # its own thread finds out why
                    peer.send({"go": number})
            self._changed.notify_all()

    def _set_left(self, reason: str) -> None:
        with self._changed:
            self._left = reason
            self._changed.notify_all()

    def _set_lost(self, reason: str) -> None:
        """Keep the first reason; rank 0 passes it on to the others."""
        if self._closing:
            return
        with self._changed:
            if self._lost is not None:
                return
            self._lost = reason
            self._changed.notify_all()
        if self.rank == 0:
            for peer in self._peers.values():
                with contextlib.suppress(OSError):
                    peer.send({"lost": reason})


class _Connection:
    """One connection: lines of JSON in both directions. `name`: the process at the other end."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self.name = ""
        self._connection, self._send_lock = connection, threading.Lock()
        connection.settimeout(timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # by these names on Linux
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._lines = connection.makefile("r", encoding="utf-8")

    def wait_without_limit(self) -> None:
        """Let `receive` wait for the next message as long as it takes."""
        self._connection.settimeout(None)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; OSError when the other end is gone."""
        with self._send_lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other end is gone."""
        try:
            line = self._lines.readline()
            return json.loads(line) if line.endswith("\n") else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End the connection; the other end receives None."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _listener(address: str) -> socket.socket:
    """A listening socket at an address of this machine; at all of them where the machine does not know that address."""
    try:
        return socket.create_server((address, 0), backlog=128)
    except OSError:
        return socket.create_server(("", 0), backlog=128)
