"""The commands, one file each: `add_options` says what --help teaches, `run` does it. Importing them is quick."""

from pyprune.commands import compare, convert, doctor, export, generate, plan, prune, report, score, search, tune

COMMANDS = {
    "doctor": doctor,
    "score": score,
    "search": search,
    "prune": prune,
    "export": export,
    "convert": convert,
    "compare": compare,
    "report": report,
    "generate": generate,
    "plan": plan,
    "tune": tune,
}
"""In the order in which --help lists them."""
