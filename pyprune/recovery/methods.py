"""The methods of repair by name, which of them can follow which, and what each can be used for."""

from __future__ import annotations

from collections.abc import Callable

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.recovery.fitting import Fitting
from pyprune.recovery.lineage import begins_at_block_0, only_narrowed
from pyprune.recovery.linear import cosine_at_cut, linear_at_cut
from pyprune.recovery.local_steps import PRECISIONS
from pyprune.recovery.refit import refit_at_cut, refit_down, refit_outputs
from pyprune.recovery.streams import Stage
from pyprune.regression.held_out import HELD_OUT_EVERY
from pyprune.regression.normal_equations import Fit
from pyprune.regression.token_weights import WEIGHTINGS

FITS: dict[str, Callable[[Stage, Fitting], Fit | None]] = {
    "linear": linear_at_cut,
    "linear-cosine": cosine_at_cut,
    "refit": refit_at_cut,
    "refit-all": refit_down,
    "refit-all-o": refit_outputs,
}
BY_STEPS = ("blockwise", "tail")
"""What makes gradient steps."""
VERSION = 8
"""Of the repairs: another one where the same method, text and options give another model."""
METHODS = ("auto", "mean-update", "scale", *FITS, "flap-bias", "stat", *BY_STEPS)
FOLLOWING = ("refit-all", "refit-all-o", *BY_STEPS)
"""What can be put behind another with a +: it goes by the streams, whatever the weights are by then."""
AT_CUT = ("mean-update", "scale", "linear", "linear-cosine", "refit")
"""What folds a removed run into the projection before it, and so needs one."""
BY_MEANS = ("mean-update", "scale", "flap-bias")
"""What takes a mean over the tokens and has no ridge to choose."""
WIDTH_ONLY = ("flap-bias", "stat")
SOLVED = ("auto", *FITS, "stat")
"""What solves least squares."""
TAKEN_BY = {
    **dict.fromkeys(("ridge", "weighting", "first", "exact"), SOLVED),
    **dict.fromkeys(("steps", "rate", "precision"), ("auto", *BY_STEPS)),
    "tail_blocks": ("auto", "tail"),
    "minutes": ("auto",),
}
"""Which methods an option changes."""
CHOICE = ("refit-all-o", "refit", "linear", "scale")
"""What `auto` chooses from for blocks or sublayers that went."""
WIDTH_CHOICE = ("refit-all-o", "stat", "flap-bias")
"""What it chooses from where only heads or neurons went."""


def chain_of(method: str) -> tuple[str, ...]:
    """The methods of "refit-all-o+blockwise+tail", in order; InputError for what cannot be had."""
    chain = tuple(method.split("+"))
    for name in chain:
        if name not in METHODS:
            raise InputError(f"repair: method {name!r}: {', '.join(METHODS)} are accepted")
    for name in chain[1:]:
        if name not in FOLLOWING or chain[0] == "auto":
            raise InputError(
                f"repair: method {method}: after a + only {', '.join(FOLLOWING)} are accepted, and nothing after auto"
            )
    return chain


def check_options(
    method: str,
    ridge: float | str,
    weighting: str = "relative",
    first: float = 1.0,
    exact: bool = False,
    steps: int | None = None,
    rate: float | None = None,
    tail_blocks: int | None = None,
    precision: str | None = None,
    minutes: float | None = None,
) -> None:
    """Raise InputError for options that cannot be had, before anything is loaded."""
    chain = chain_of(method)
    number = isinstance(ridge, (int, float)) and not isinstance(ridge, bool) and 0 <= ridge < float("inf")
    if ridge != "auto" and not number:
        raise InputError(f"repair: ridge {ridge!r}: auto or a finite number from 0 is expected")
    if weighting not in WEIGHTINGS:
        raise InputError(f"repair: weighting {weighting!r}: {', '.join(WEIGHTINGS)} are accepted")
    if not 0 <= first < float("inf"):
        raise InputError(f"repair: first {first!r}: a finite weight from 0 is expected")
    for name, value in (("steps", steps), ("tail_blocks", tail_blocks)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"repair: {name} {value!r}: a whole number from 1 is expected")
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"repair: precision {precision!r}: {', '.join(PRECISIONS)} are accepted")
    for name, amount in (("rate", rate), ("minutes", minutes)):
        if amount is not None and not 0 < amount < float("inf"):
            raise InputError(f"repair: {name} {amount!r}: a finite number above 0 is expected")
    values: dict[str, tuple[object, object]] = {
        "ridge": (ridge, "auto"), "weighting": (weighting, "relative"), "first": (first, 1.0), "exact": (exact, False),
        "steps": (steps, None), "rate": (rate, None), "tail_blocks": (tail_blocks, None),
        "precision": (precision, None), "minutes": (minutes, None),
    }  # fmt: skip
    for option, (given, default) in values.items():
        if given != default and not set(TAKEN_BY[option]) & set(chain):
            takers = ", ".join(TAKEN_BY[option])
            raise InputError(f"repair: {option} {given!r}: belongs to method {takers}, not to {method}")


def require_samples(samples: int, chain: tuple[str, ...], ridge: float | str) -> None:
    """InputError where the samples are too few for some to be held out, and those decide."""
    chooses = {"auto", *BY_STEPS, *((*FITS, "stat") if ridge == "auto" else ())}
    if samples < HELD_OUT_EVERY and chooses & set(chain):
        raise InputError(
            f"repair: {samples} samples: at least {HELD_OUT_EVERY} are expected, as every {HELD_OUT_EVERY}th is held"
            " out (a closed form with a number as ridge takes fewer)"
        )


def require_processes(method: str, count: int) -> None:
    """InputError where so many processes cannot share the work of the method, or of one of the chain."""
    if count > 1 and set(chain_of(method)) & {*BY_STEPS, "linear-cosine"}:
        raise InputError(f"repair: method {method}: works in one process only; several were started")


def require_foldable(original: Decoder, pruned: Decoder, method: str) -> None:
    """InputError where the method has nothing to mend, or nowhere to fold it into."""
    if method in AT_CUT and begins_at_block_0(original, pruned):
        raise InputError(
            f"repair: method {method}: the removed part begins at block 0, with no projection before it to change;"
            " refit-all, refit-all-o, blockwise or tail is expected"
        )
    require_kind(original, pruned, method)


def require_kind(original: Decoder, pruned: Decoder, method: str) -> None:
    """InputError where the method is not for what was removed: whole sublayers, or heads and neurons."""
    check_kind(method, only_narrowed(original, pruned))


def check_kind(method: str, narrows: bool) -> None:
    """`require_kind` by whether heads or neurons alone are removed."""
    if method in ("scale", "linear", "linear-cosine") and narrows:
        raise InputError(
            f"repair: method {method}: is for removed blocks and sublayers, and only heads or neurons were removed;"
            f" one of {', '.join(WIDTH_CHOICE)} is expected"
        )
    if method in WIDTH_ONLY and not narrows:
        raise InputError(
            f"repair: method {method}: is for removed heads and neurons, and blocks or sublayers were removed;"
            " refit-all-o is for both"
        )
