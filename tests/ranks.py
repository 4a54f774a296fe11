"""Several processes of one group, for tests."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from tests.fresh import FreshProcess, start_fresh


def run_ranks(script: str, folder: Path, size: int) -> AbstractContextManager[list[FreshProcess]]:
    """Processes of a Python script whose arguments are a rank and the folder."""
    return start_fresh(script, os.environ, [(rank, folder) for rank in range(size)])


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
