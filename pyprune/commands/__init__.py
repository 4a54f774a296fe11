"""The commands, one file each: `add_options` says what --help teaches, `run` does it. Importing them is quick."""

from pyprune.commands import (
    advise_width,
    compare,
    convert,
    doctor,
    eval,
    export,
    frontier,
    generate,
    lm_eval,
    pad,
    plan,
    prune,
    report,
    samples,
    score,
    search,
    sweep,
    tune,
)

COMMANDS = {
    "doctor": doctor,
    "score": score,
    "search": search,
    "prune": prune,
    "pad": pad,
    "advise-width": advise_width,
    "export": export,
    "convert": convert,
    "compare": compare,
    "frontier": frontier,
    "eval": eval,
    "samples": samples,
    "lm-eval": lm_eval,
    "report": report,
    "sweep": sweep,
    "generate": generate,
    "plan": plan,
    "tune": tune,
}
"""In the order in which --help lists them."""
