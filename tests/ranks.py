"""Several processes of one group, for tests."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def run_ranks(script: str, folder: Path, size: int) -> list[subprocess.Popen[str]]:
    """Processes of a Python script whose arguments are a rank and the folder."""
    return [
        subprocess.Popen([sys.executable, "-c", script, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(size)
    ]


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
