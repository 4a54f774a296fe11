"""The paper's seven tasks on SmolLM2-135M: our lm-eval model against lm-eval's `hf`, plain and accelerated.

`-k fp32` or `-k bf16` picks the dtype, `-k piqa` a task; `--documents=N` of each (100). `hf` runs with the batch size
that was fastest for it on the first documents of the task, and in bf16 with its softmax in float32. The bound is what
sharing contexts alone would give: tokens that `hf` reads, padding not counted, over those that we read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import pyprune
from bench.rounds import Side
from bench.tables import FASTER, interval_text
from pyprune.evaluation.paper_tasks import PAPER_TASKS
from pyprune.evaluation.tasks import load_task, require_tasks
from pyprune.lm_eval import PyPruneLM
from pyprune.models.tensors import DTYPES
from pyprune.ops import native
from pyprune.runtime.endings import ending
from pyprune.runtime.shared_context import families

OURS, HF, ACCELERATED = "pyprune", "hf", "hf, accelerated"
BATCHES = (1, 4, 16, 64)  # sequences at a time, of which hf's best is taken
TRIED = 6  # documents on which they are tried
ROUNDS = 3


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def models(request: pytest.FixtureRequest, smollm2) -> dict[str, Any]:
    decoder = smollm2.to(DTYPES[request.param])
    tokenizer = decoder.tokenizer()
    plain, fast = pyprune.to_transformers(decoder), pyprune.accelerate(pyprune.to_transformers(decoder))
    options = {"tokenizer": tokenizer, "backend": "causal", "softmax_dtype": torch.float32}
    return {
        OURS: PyPruneLM(decoder, tokenizer=tokenizer),
        HF: HFLM(pretrained=plain, **options),
        ACCELERATED: HFLM(pretrained=fast, **options),
    }


def requests_of(name: str, documents: int) -> list[Instance]:
    """The requests of a task's first documents, as lm-eval makes them."""
    (task,) = load_task(name, require_tasks([name], limit=documents))
    task.build_all_requests(limit=documents, rank=0, world_size=1)
    return task.instances


def best_batch(model: HFLM, requests: Sequence[Instance]) -> int:
    """The batch size with which `model` is fastest."""
    seconds = {}
    for batch in BATCHES:
        model.batch_size_per_gpu = batch
        before = time.perf_counter()
        model.loglikelihood(requests, disable_tqdm=True)
        seconds[batch] = time.perf_counter() - before
        if batch >= len(requests):
            break
    return min(seconds, key=seconds.__getitem__)


def tokens_read(model: PyPruneLM, requests: Sequence[Instance]) -> dict[str, int]:
    """Tokens without padding: what hf reads, which runs requests with the same input once, and what we read."""
    pairs = [model._encode_pair(*request.args) for request in requests]
    inputs = [ending(context, continuation, model.max_length).read for context, continuation in pairs]
    shared = sum(family.tokens for family in families(inputs, model.tokens))
    return {HF: sum(map(len, {tuple(read) for read in inputs})), OURS: shared}


def choices(requests: Sequence[Instance], answers: Sequence[tuple[float, bool]]) -> dict[int, int]:
    """By document, the request with the greatest log-likelihood."""
    best: dict[int, tuple[float, int]] = {}
    for request, (value, _) in zip(requests, answers, strict=True):
        if request.doc_id not in best or value > best[request.doc_id][0]:
            best[request.doc_id] = (value, request.idx)
    return {document: index for document, (_, index) in best.items()}


@pytest.mark.parametrize("name", list(PAPER_TASKS))
def test_task(interleaved, benchmark, table, models, request, name: str):
    documents = request.config.getoption("--documents")
    requests = requests_of(name, documents)
    tried = [one for one in requests if one.doc_id < TRIED]
    batches = {side: best_batch(models[side], tried) for side in (HF, ACCELERATED)}
    answers: dict[str, list[tuple[float, bool]]] = {}

    def run(side: str) -> None:
        if side in batches:
            models[side].batch_size_per_gpu = batches[side]
        answers[side] = models[side].loglikelihood(requests, disable_tqdm=True)

    seconds = interleaved({side: Side(partial(run, side)) for side in models}, ROUNDS, warmups=0)

    tokens = tokens_read(models[OURS], requests)
    bound = tokens[HF] / tokens[OURS]
    by_document = {side: choices(requests, own) for side, own in answers.items()}
    same = sum(by_document[OURS][document] == index for document, index in by_document[HF].items())
    difference = max(abs(a - b) for (a, _), (b, _) in zip(answers[OURS], answers[HF], strict=True))
    decoder = models[OURS].decoder
    benchmark.extra_info.update(
        task=name,
        dtype=str(decoder.dtype).removeprefix("torch."),
        instruction_set=native.selected_isa(),
        threads=torch.get_num_threads(),
        documents=len(by_document[OURS]),
        requests=len(requests),
        batch_sizes=batches,
        tokens_read=tokens,
        bound_by_sharing=bound,
        same_choices=same,
        largest_difference=difference,
    )
    ratios = benchmark.extra_info["ratio"]
    table(
        f"lm-eval, {decoder.name}, {decoder.dtype}, {documents} documents a task, {native.selected_isa()}",
        {
            "task": name,
            "sequences": str(len(requests)),
            **{f"{side}, s": f"{median(samples):.1f}" for side, samples in seconds.items()},
            FASTER: interval_text(ratios[HF]),
            "than accelerated": interval_text(ratios[ACCELERATED]),
            "by sharing": f"{bound:.2f}",
            "same choice": f"{same}/{len(by_document[OURS])}",
            "largest difference": f"{difference:.1e}",
        },
    )
