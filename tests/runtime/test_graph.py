"""The engine on a recorded step: a CPU stand-in replays the same calls on the same buffers as a CUDA graph would."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyprune import Engine
from pyprune.runtime import engine as module
from tests import seeds


def replayed(engine: Engine) -> list[int]:
    """Make the engine record its steps; the list grows by one a recording."""
    recordings: list[int] = []

    def record(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        assert device == engine.decoder.device
        recordings.append(1)
        for _ in range(3):  # as the CUDA version warms up: repeating a step must not disturb the cache
            run()
        return run

    engine._record = record
    engine._fused_steps = []  # the step of single operators, which is what a GPU records
    return recordings


def prompt(batch: int, tokens: int = 7) -> torch.Tensor:
    return torch.randint(0, 131, (batch, tokens), generator=seeds.generator(batch))


def test_recorded_steps_give_the_same_tokens_and_are_recorded_once_for_each_batch_and_mask(tiny):
    direct, recorded = Engine(tiny, max_batch=3, max_len=40), Engine(tiny, max_batch=3, max_len=40)
    count = replayed(recorded)
    for batch, skip, total in ((1, None, 1), (3, None, 2), (3, [2], 3), (1, None, 3), (3, [2], 3)):
        expected = direct.generate(prompt(batch), max_new_tokens=9, skip=skip)
        assert torch.equal(recorded.generate(prompt(batch), max_new_tokens=9, skip=skip), expected)
        assert len(count) == total


def test_logits_of_one_step_survive_the_next(tiny):
    engine = Engine(tiny, max_len=20)
    replayed(engine)
    engine.prefill(prompt(1))
    first = engine.decode(torch.tensor([3]))
    kept = first.clone()
    engine.decode(torch.tensor([4]))
    assert torch.equal(first, kept)


def test_old_recordings_make_room(tiny, monkeypatch):
    monkeypatch.setattr(module, "MAX_GRAPHS", 2)
    engine = Engine(tiny, max_len=20)
    replayed(engine)
    for block in range(4):
        engine.generate(prompt(1), max_new_tokens=3, skip=[block])
    assert len(engine._graphs) == 2


def test_one_recording_for_each_batch_size_serves_every_device_mask(tiny):
    direct, recorded = Engine(tiny, max_batch=3, max_len=40), Engine(tiny, max_batch=3, max_len=40)
    count = replayed(recorded)
    masks = torch.rand(4, 5, 2, generator=seeds.generator(0)) < 0.3
    for batch in (1, 3):
        for mask in masks:
            expected = direct.generate(prompt(batch), max_new_tokens=9, skip=mask)
            assert torch.equal(recorded.generate(prompt(batch), max_new_tokens=9, skip=mask), expected)
    assert len(count) == 2
    whole = direct.generate(prompt(3), max_new_tokens=9)
    assert torch.equal(recorded.generate(prompt(3), max_new_tokens=9), whole)  # known to the host: its own recording
    assert len(count) == 3


def test_a_change_of_skip_in_the_middle_of_a_sequence_takes_the_recording_of_the_new_one(tiny):
    direct, recorded = Engine(tiny, max_len=40), Engine(tiny, max_len=40)
    count = replayed(recorded)
    for engine in (direct, recorded):
        engine.prefill(prompt(1))
    for skip in (None, {"ffn": [1]}, [], {"ffn": [1]}, {"blocks": [2]}, None):
        token = torch.tensor([3])
        assert torch.equal(recorded.decode(token, skip=skip), direct.decode(token, skip=skip))
    assert len(count) == 3


def test_ragged_ends_replay_as_they_run(tiny):
    direct, recorded = Engine(tiny, max_batch=3, max_len=15), Engine(tiny, max_batch=3, max_len=15)
    replayed(recorded)
    options = {"max_new_tokens": [9, 2, 5], "eos_token_id": 7}
    assert torch.equal(recorded.generate(prompt(3), **options), direct.generate(prompt(3), **options))
