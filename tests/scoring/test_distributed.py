"""Several processes get what one gets, and learn at once when one of them is gone."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy
import pytest
import torch

from pyprune import InputError, Scores, load, score, search
from pyprune.scoring import cells
from pyprune.scoring.calibration import calibration
from pyprune.scoring.distributed import process_group
from pyprune.scoring.liveness import LivenessMonitor
from pyprune.scoring.process_group import SINGLE_PROCESS, WorkerLost
from tests.ranks import free_port, run_ranks

SHAPE = "shape:hidden=24,blocks=5,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=97"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("samples", [1, 2, 5, 10])
def test_every_cell_belongs_to_one_process_and_all_have_as_much_to_do(samples: int, size: int):
    costs = [29 - n % 30 for n in range(30)]
    pending = numpy.ones((samples, len(costs)), dtype=bool)
    pending[0, 3:9] = False  # finished by an earlier run
    shares = [cells.cells_of_rank(pending, costs, rank, size) for rank in range(size)]
    assert (sum(share.astype(int) for share in shares) == pending).all()
    work = [float((share * numpy.asarray(costs)).sum()) for share in shares]
    assert max(work) - min(work) <= 2 * max(costs)
    for share in shares:
        # Whole samples first: at most the first and the last one of a process are shared with others.
        rows = [tuple(row) for row, full in zip(share, pending, strict=True) if row.any() and (row != full).any()]
        assert len(rows) <= 2


def test_parts_cover_their_cells_once():
    table = numpy.zeros((7, 5), dtype=bool)
    table[1:6] = True
    table[3, 2:] = False
    parts = [part for block in cells.cell_blocks(table) for part in cells.split_block(block, 2, 3)]
    seen = numpy.zeros((7, 5), dtype=int)
    for part in parts:
        assert part.stop - part.start <= 2
        assert len(part.candidates) <= 3
        seen[part.start : part.stop, list(part.candidates)] += 1
    assert (seen == table).all()


WORK = """
import json, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from pyprune import load, score, search
from pyprune.scoring.calibration import calibration

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3,
                        timeout=timedelta(seconds=100))
decoder = load(%r)
ids = calibration(decoder, None, 5, 13, 0).input_ids
mask = torch.ones_like(ids)
mask[2, :4] = 0
late = time.sleep if rank == 2 else lambda seconds: None
late(1)  # slow is not dead
found = [score(decoder, ids, attention_mask=mask, unit=unit).to_dict() for unit in ("block", "mha+ffn")]
found.append(search(decoder, ids, "greedy", count=3, unit="mha+ffn", memory=40 << 20,
                    progress=lambda done, total: late(0.02)).to_dict())
found.append(score(decoder, ids, distributed=False).to_dict())
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_three_processes_with_a_group_of_their_own_get_what_one_gets(tmp_path):
    with run_ranks(WORK % SHAPE, tmp_path, 3) as processes:
        for process in processes:
            assert process.wait() == 0, process.printed("err")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert ranks[0][:3] == ranks[1][:3] == ranks[2][:3]  # to the bit
    decoder = load(SHAPE)
    ids = calibration(decoder, None, 5, 13, 0).input_ids
    mask = torch.ones_like(ids)
    mask[2, :4] = 0
    for unit, data in zip(("block", "mha+ffn"), ranks[0], strict=False):
        alone, shared = score(decoder, ids, attention_mask=mask, unit=unit), Scores.from_dict(data)
        assert shared.order() == alone.order()
        assert shared.values == pytest.approx(alone.values, rel=1e-6)
        assert shared.baseline == pytest.approx(alone.baseline, rel=1e-6)
    alone = search(decoder, ids, "greedy", count=3, unit="mha+ffn").to_dict()
    assert ranks[0][2]["order"] == alone["order"]
    assert [step["score"] for step in ranks[0][2]["steps"]] == pytest.approx(
        [step["score"] for step in alone["steps"]], rel=1e-6
    )
    assert ranks[0][2]["naive"] == alone["naive"]
    assert ranks[0][2]["cost"]["head_passes"] == alone["cost"]["head_passes"]


@pytest.mark.slow
def test_torchrun_runs_the_command_line_and_rank_0_alone_prints_and_writes(tmp_path):
    command = [SHAPE, "--unit", "mha", "--samples", "5", "--seq-len", "13", "--out", str(tmp_path / "s.json")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
         "-m", "pyprune", "score", *command, "--resume", "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed, written = Scores.from_dict(json.loads(done.stdout)), Scores.from_json(tmp_path / "s.json")
    assert printed == written
    assert os.listdir(tmp_path) == ["s.json"]  # neither a journal nor what a second writer left
    decoder = load(SHAPE)
    alone = score(decoder, calibration(decoder, None, 5, 13, 0).input_ids, unit="mha")
    assert written.order() == alone.order()
    assert written.values == pytest.approx(alone.values, rel=1e-6)


DIES = """
import os, signal, sys, time
from pyprune.cli import main
from pyprune.scoring import evaluator

rank = sys.argv[1]
os.environ.update(RANK=rank, WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT="%d")
run = evaluator.candidate_sums

def candidate_sums(*inputs, advance, **options):
    def slowly(sequences, sublayer):
        if rank == "1" and sublayer == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(100 if rank != "1" and sublayer == 6 else 1):  # a part that goes on for long
            time.sleep(0.2)
            advance(0, sublayer)
        advance(sequences, sublayer)
    return run(*inputs, advance=slowly, **options)

evaluator.candidate_sums = candidate_sums
code = main(["score", %r, "--samples", "60", "--seq-len", "13", "--json"])
print("ended", time.time(), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_the_middle_of_their_part(tmp_path):
    """By its name, and not at the next collective: their parts would go on for 20 seconds or more."""
    with run_ranks(DIES % (free_port(), SHAPE), tmp_path, 3) as processes:
        assert processes[1].wait() == -signal.SIGKILL
        died = time.monotonic()
        for process in (processes[0], processes[2]):
            assert process.wait() == 1
            assert f"rank 1 (process {processes[1].pid}) has died" in process.printed("err")
        assert time.monotonic() - died < 15


OTHERS = """
import sys
import torch
import torch.distributed as dist
from pyprune import load, score

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
score(load(%r), torch.full((2, 9), rank))
"""


@pytest.mark.slow
def test_processes_that_score_different_tokens_are_refused(tmp_path):
    with run_ranks(OTHERS % SHAPE, tmp_path, 2) as processes:
        assert all([process.wait() for process in processes])
        errors = [process.printed("err") for process in processes]
    assert "InputError: rank 1 was given other weights, tokens or options than rank 0" in errors[1]
    assert "WorkerLost: rank 1 (process " in errors[0]
    assert "failed: rank 1 was given other weights" in errors[0]


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert process_group(torch.device("cpu")) is SINGLE_PROCESS
    assert process_group(torch.device("cpu"), False) is SINGLE_PROCESS
    with pytest.raises(InputError, match="distributed: True given"):
        process_group(torch.device("cpu"), True)


@pytest.fixture
def three():
    """Liveness monitors as three processes have them, and the address at which the first one listens."""
    announcements = queue.Queue()
    announced: list[str] = []

    def announce(text: str) -> str:
        if text:
            announced.append(text)
            for _ in range(2):
                announcements.put(text)
            return text
        return announcements.get(timeout=10)

    monitors: dict[int, LivenessMonitor] = {}

    def connect(rank: int) -> None:
        monitors[rank] = LivenessMonitor(rank, 3, announce, "127.0.0.1", timeout=10)

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    while not announced:
        time.sleep(0.01)
    address, port, _ = json.loads(announced[0])
    with socket.create_connection((address, port)) as stranger:  # is sent away, and disturbs nobody
        stranger.sendall(b'{"rank": 2, "token": "guessed", "process": 1}\n')
        connect(2)
    for thread in threads:
        thread.join()
    yield [monitors[rank] for rank in range(3)]
    for monitor in monitors.values():
        monitor.close()


def waiting(monitor: LivenessMonitor) -> threading.Thread:
    thread = threading.Thread(target=monitor.barrier)
    thread.start()
    return thread


def test_nobody_goes_on_before_all_have_arrived(three):
    for _ in range(3):
        threads = [waiting(three[0]), waiting(three[2])]
        time.sleep(0.05)
        assert all(thread.is_alive() for thread in threads)
        three[1].barrier()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("gone", [0, 1])
def test_a_connection_that_ends_is_a_death_to_all_others(three, gone: int):
    three[gone]._closing = True  # what is left of it in this process keeps quiet
    for connection in three[gone]._peers.values():  # as the system does when it ends the process
        connection.close()
    for rank in {0, 1, 2} - {gone}:
        with pytest.raises(WorkerLost, match=rf"rank {gone} \(process \d+\) has died"):
            three[rank].barrier()
        with pytest.raises(WorkerLost):
            three[rank].check()


def test_a_failure_is_passed_on_in_its_own_words(three):
    three[2].close("no memory left")
    for rank in (0, 1):
        with pytest.raises(WorkerLost, match=r"rank 2 \(process \d+\) failed: no memory left"):
            three[rank].barrier()


def test_who_leaves_early_is_missed_by_those_who_wait(three):
    three[1].close()
    with pytest.raises(WorkerLost, match="has left before the work was done"):
        three[0].barrier()


def test_finished_parts_reach_the_first_process_before_it_goes_on(three):
    entries = []
    three[0].on_entry = entries.append
    threads = [waiting(three[0])]
    for rank in (1, 2):
        for number in range(3):
            three[rank].send_entry({"rank": rank, "number": number})
        threads.append(waiting(three[rank]))
    for thread in threads:
        thread.join(10)
    assert sorted((entry["rank"], entry["number"]) for entry in entries) == [(r, n) for r in (1, 2) for n in range(3)]


def test_who_does_not_come_is_named():
    with pytest.raises(WorkerLost, match=r"rank 1, 2 did not come within 0 s"):
        LivenessMonitor(0, 3, lambda text: text, "127.0.0.1", timeout=0.2)
