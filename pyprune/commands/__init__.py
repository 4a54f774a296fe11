"""The commands, one file each: `add_options` says what --help teaches, `run` does it. Importing them is quick."""

from pyprune.commands import advise_width, compare, doctor, generate, pad, plan, prune, score, sweep, tune

COMMANDS = {
    "doctor": doctor,
    "score": score,
    "prune": prune,
    "pad": pad,
    "advise-width": advise_width,
    "compare": compare,
    "sweep": sweep,
    "generate": generate,
    "plan": plan,
    "tune": tune,
}
"""In the order in which --help lists them."""
