"""A repair by two processes, each with half of the windows, is the repair by one."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyprune
from pyprune import Pruning
from pyprune.errors import InputError
from pyprune.recovery import repair_with_report
from tests import seeds
from tests.ranks import run_ranks

SHAPE = "shape:hidden=20,blocks=5,heads=6,kv_heads=2,head_dim=6,ffn=23,vocab=53"
RIDGE = {"ridge": 0.01}  # chosen on a few held-out windows, it could be another one by rounding
METHODS: dict[str, dict] = {"mean-update": {}, "scale": {}, "linear": RIDGE, "refit-all-o": RIDGE, "auto": RIDGE}

WORK = """
import json, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
import pyprune
from pyprune.recovery import fitting, repair_with_report

fit_linear = fitting.fit_linear
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                        timeout=timedelta(seconds=100))
original = pyprune.load(%r, dtype=torch.float32)
ids = load_file(f"{folder}/ids.safetensors")["ids"]
reports = {}
for method, options in %r.items():
    journal = f"{folder}/journal-{method}"
    for part in ("whole", "resumed"):
        report = repair_with_report(original, pyprune.Pruning(blocks=(2,)), ids, method, **options, resume=journal)
        fitting.fit_linear = None if part == "whole" else fit_linear  # what is in the journal is not fitted again
        reports[f"{method} {part}"] = report.to_dict()
        tensors = {name: tensor.clone() for name, tensor in report.decoder.tensors()}
        save_file(tensors, f"{folder}/{method}-{part}-{rank}.safetensors")
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(reports, file)
dist.destroy_process_group()
"""


def distance(left, right):
    """The norm of the difference of two models' tensors by name, in float64."""
    assert left.keys() == right.keys()
    return sum((left[name].double() - right[name].double()).square().sum() for name in left).sqrt()


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"method": "tail"}, "method tail: works in one process only"),
        ({"method": "refit-all+blockwise"}, r"method refit-all\+blockwise: works in one process only"),
        ({"method": "linear-cosine"}, "method linear-cosine: works in one process only"),
        ({"method": "auto", "minutes": 1.0}, r"minutes 1\.0: is for one process"),
    ],
)
def test_what_needs_one_process_is_refused_by_several(monkeypatch, tiny, options, refused: str):
    module = sys.modules[repair_with_report.__module__]  # behind the function of its name
    monkeypatch.setattr(module, "process_group", lambda *_: SimpleNamespace(rank=0, size=2))
    ids = torch.randint(0, 131, (16, 9), generator=seeds.generator(4))
    with pytest.raises(InputError, match=f"^repair: {refused}; several were started$"):
        repair_with_report(tiny, Pruning(blocks=(2,)), ids, **options)


@pytest.mark.slow
def test_two_processes_repair_as_one_does(tmp_path):
    ids = torch.randint(0, 53, (24, 17), generator=seeds.generator(3))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    with run_ranks(WORK % (SHAPE, METHODS), tmp_path, 2) as processes:
        for process in processes:
            assert process.wait() == 0, process.printed("err")
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert reports[0] == reports[1]
    original, cut = pyprune.load(SHAPE, dtype=torch.float32), Pruning(blocks=(2,))
    pruned = dict(pyprune.apply(original, cut).tensors())
    for method in METHODS:
        ranks = [
            load_file(tmp_path / f"{method}-{part}-{rank}.safetensors")
            for part in ("whole", "resumed")
            for rank in (0, 1)
        ]
        for other in ranks[1:]:  # to the bit, and from the journal too
            assert distance(ranks[0], other) == 0
        if method == "auto":  # one process would go on with tail
            assert reports[0]["auto whole"]["tried"]
            assert "tail" not in "+".join(reports[0]["auto whole"]["tried"])
            continue
        alone = repair_with_report(original, cut, ids, method, **METHODS[method])
        whole = dict(alone.decoder.tensors())
        half = dict(repair_with_report(original, cut, ids[::2], method, **METHODS[method]).decoder.tensors())
        start = {name: pruned.get(name, torch.zeros_like(tensor)) for name, tensor in whole.items()}
        changed = distance(whole, start)
        assert changed > 0
        # Only rounding: the windows come in other batches. A rank that saw its own windows alone would differ far more.
        assert distance(ranks[0], whole) < 1e-3 * changed
        assert distance(half, whole) > 1e-2 * changed
        measured = reports[0][f"{method} whole"]["held_out_perplexity" if alone.holds_out else "calibration_perplexity"]
        assert measured["repaired"] == pytest.approx(alone.reached(), rel=1e-4)
