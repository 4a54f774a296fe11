"""Knowing at once that another process has died, and saying so: a connection from every process to the first.

The system closes a process's connections when it ends, however it ends, so the others learn of it in milliseconds and
by name; a process that is only slow, or stopped, keeps its connection. A machine that falls silent is found by the
system's own keep-alive probes, which it answers without the process.

Lines of JSON. Upwards: hello, arrived, entry (a finished part, for the journal), failed, bye. Downwards: go, lost.
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

Tell = Callable[[str], str]
"""Gives every process the text that the first one calls it with."""

HELLO = 30.0
"""Seconds in which a connection has to be made, or to say whose it is."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""A silent machine is given up after 5 + 3 * 2 seconds."""


class LivenessMonitor:
    """The connections of one process, number `rank` of `size`.

    tell: how the others learn where the first process listens, at `address`. patience: seconds in which all of them
    have to come; the constructor returns when they have. `on_entry` is called in the first process, from a thread, with
    what others send.
    """

    def __init__(self, rank: int, size: int, tell: Tell, address: str, patience: float) -> None:
        self.rank, self.size = rank, size
        self.on_entry: Callable[[dict[str, Any]], None] = lambda entry: None
        self._changed = threading.Condition()
        self._lost: str | None = None
        self._left: str | None = None
        self._went = 0  # barriers that are over
        self._arrived: dict[int, int] = {}
        self._peers: dict[int, _Line] = {}
        self._closing = False
        if rank == 0:
            self._listen(tell, address, patience)
        else:
            self._connect(tell, patience)

    def check(self, leaving: bool = True) -> None:
        """Raise WorkerLost when another process is gone; leaving: also when it is because it was through."""
        why = self._lost or (self._left if leaving else None)
        if why is not None:
            raise WorkerLost(why)

    def wait_for_all(self) -> None:
        """Return when every process has called this as often; raise WorkerLost when one is gone instead."""
        with self._changed:
            turn = self._went + 1
            if self.rank == 0:
                self._arrived[0] = turn
                self._go_on()
            else:
                self._peers[0].send({"arrived": turn})
            while self._went < turn:
                self.check()
                self._changed.wait(1.0)

    def send_entry(self, entry: dict[str, Any]) -> None:
        """Hand something to the first process, which calls its `on_entry`."""
        self._peers[0].send({"entry": entry})

    def wait_lost(self, seconds: float) -> None:
        """Raise WorkerLost if it becomes known within some seconds that another process is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or self._left, seconds)
        self.check()

    def close(self, failure: str | None = None) -> None:
        """Leave: in peace, or with what went wrong here, which the others are told."""
        self._closing = True
        for line in list(self._peers.values()):
            with contextlib.suppress(OSError):
                line.send({"bye": True} if failure is None else {"failed": failure})
            line.close()

    def _listen(self, tell: Tell, address: str, patience: float) -> None:
        token = secrets.token_hex(16)
        with _listener(address) as server:
            server.settimeout(patience)
            tell(json.dumps([address, server.getsockname()[1], token]))
            while len(self._peers) < self.size - 1:
                try:
                    line = _Line(server.accept()[0], HELLO)
                except TimeoutError:
                    missing = sorted(set(range(1, self.size)) - self._peers.keys())
                    raise WorkerLost(
                        f"rank {', '.join(map(str, missing))} did not come within {patience:.0f} s; every process has"
                        " to make the same call"
                    ) from None
                hello = line.receive() or {}
                if hello.get("token") != token or hello.get("rank") not in range(1, self.size):
                    line.close()  # not one of ours
                    continue
                line.who = f"rank {hello['rank']} (process {hello['process']})"
                self._peers[hello["rank"]] = line
        for rank, line in self._peers.items():
            line.send({"hello": os.getpid()})
            threading.Thread(target=self._hear, args=(rank, line), daemon=True).start()

    def _connect(self, tell: Tell, patience: float) -> None:
        address, port, token = json.loads(tell(""))
        line = _Line(socket.create_connection((address, port), timeout=HELLO), patience)
        line.send({"rank": self.rank, "process": os.getpid(), "token": token})
        hello = line.receive()
        if hello is None:
            raise WorkerLost("rank 0 has ended before all processes were connected")
        line.who = f"rank 0 (process {hello['hello']})"
        self._peers[0] = line
        threading.Thread(target=self._hear, args=(0, line), daemon=True).start()

    def _hear(self, rank: int, line: _Line) -> None:
        """Take what comes from one process until it ends; runs in a thread."""
        line.endless()
        while (message := line.receive()) is not None:
            if "arrived" in message:
                with self._changed:
                    self._arrived[rank] = message["arrived"]
                    self._go_on()
            elif "go" in message:
                with self._changed:
                    self._went = message["go"]
                    self._changed.notify_all()
            elif "entry" in message:
                try:
                    self.on_entry(message["entry"])
                except Exception as error:
                    self._lose(f"the journal could not be written: {error}")
            elif "lost" in message:
                return self._lose(message["lost"])
            elif "failed" in message:
                return self._lose(f"{line.who} failed: {message['failed']}")
            elif "bye" in message:
                return self._leave(f"{line.who} has left before the work was done")
        self._lose(f"{line.who} has died")

    def _go_on(self) -> None:
        """In the first process: let all go when all have arrived."""
        turn = self._went + 1
        if sum(arrived >= turn for arrived in self._arrived.values()) == self.size:
            self._went = turn
            for line in self._peers.values():
                with contextlib.suppress(OSError):  # its own thread finds out why
                    line.send({"go": turn})
            self._changed.notify_all()

    def _leave(self, why: str) -> None:
        with self._changed:
            self._left = why
            self._changed.notify_all()

    def _lose(self, why: str) -> None:
        if self._closing:
            return
        with self._changed:
            if self._lost is not None:
                return
            self._lost = why
            self._changed.notify_all()
        if self.rank == 0:
            for line in self._peers.values():
                with contextlib.suppress(OSError):
                    line.send({"lost": why})


class _Line:
    """One connection: lines of JSON in both directions."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.who = ""
        self._connection, self._sending = connection, threading.Lock()
        connection.settimeout(seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):  # by these names on Linux
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._lines = connection.makefile("r", encoding="utf-8")

    def endless(self) -> None:
        """Wait for the next line as long as it takes."""
        self._connection.settimeout(None)

    def send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when there is no other side any more."""
        try:
            line = self._lines.readline()
            return json.loads(line) if line.endswith("\n") else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _listener(address: str) -> socket.socket:
    """A listening socket at an address of this machine; at all of them where that name is not one of its own."""
    try:
        return socket.create_server((address, 0), backlog=128)
    except OSError:
        return socket.create_server(("", 0), backlog=128)
