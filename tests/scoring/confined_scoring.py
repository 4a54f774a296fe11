"""confined_scoring.py DIR IDS stream|whole: scores a checkpoint with 48 MiB of data beyond what the process has."""

import json
import resource
import sys
from pathlib import Path

import torch

from pyprune import load, score

torch.set_num_threads(1)
directory, ids, how = sys.argv[1:]
samples = torch.tensor(json.loads(ids))
warm = load("shape:hidden=32,blocks=1,heads=1,kv_heads=1,head_dim=32,ffn=64,vocab=300")
score(warm, samples)  # from here on libraries and threads are there
len(load(directory, stream=True).blocks[0:1])
sizes = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(sizes["VmData"].split()[0]) * 1024 + (48 << 20)
# 10 MiB of it are left to what no plan counts: code that libraries compile, and the arenas of their threads.
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
values = score(load(directory, stream=how == "stream"), samples, memory=38 << 20).values
print(json.dumps(values))
