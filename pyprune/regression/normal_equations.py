"""Weighted least squares of bounded size: what a projection should be, from sums over tokens alone.

For inputs A `[rows, inputs]`, target outputs Y `[rows, outputs]` and weights w `[rows]` the sums are

    G = A'wA,    C = A'wY,    S = sum w |Y|^2,    N = sum w,

and the change D of a projection W `[outputs, inputs]` that minimises sum w |A (W + D)' - Y|^2 + ridge m |D|^2, with m
the mean of G's diagonal, is

    D' = (G + ridge m I)^-1 (C - G W').

Products of some rows are made in their own dtype and summed in float64: in float32 each product's error is that of a
float32 matrix product over ROWS rows. A bias is one more input of ones, without a ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyprune.models.decoder import Linear

ROWS = 2048
"""Rows whose products are summed in the activations' dtype before they are added up in float64."""

_COLUMNS = 512
"""Columns of G made together, from the diagonal's tile down: what mirrors it above is not computed."""

RIDGES = (0.1, 1.0, 10.0)
"""What `ridge="auto"` tries first, in units of the mean of G's diagonal."""

RIDGE_STEP, RIDGE_LIMITS = 10.0, (1e-8, 1e8)
"""While the ridge at an end of those tried is the best, one further out by this factor is tried, within limits."""


class NormalEquations:
    """The sums G, C, S and N, float64 on the inputs' device. bias: whether one is fitted too."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu", bias: bool = False) -> None:
        size = inputs + bias
        self.bias = bias
        self._sums = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._is_whole = False  # whether what stands above the diagonal mirrors what is summed below
        self.cross = torch.zeros(size, outputs, dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)
        self.rows = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def gram(self) -> Tensor:
        """G, made whole of the lower triangle that is summed."""
        if not self._is_whole:
            self._sums.tril_().add_(self._sums.tril(-1).T)
            self._is_whole = True
        return self._sums

    def add(self, inputs: Tensor, outputs: Tensor, weights: Tensor) -> None:
        """Add rows: `inputs [rows, inputs]`, the target `outputs [rows, outputs]`, `weights [rows]`."""
        self._is_whole = False
        for a, y, w in zip(inputs.split(ROWS), outputs.split(ROWS), weights.split(ROWS), strict=True):
            root = w.to(a.dtype).sqrt().unsqueeze(1)
            a = a * root
            if self.bias:
                a = torch.cat([a, root], 1)
            y = y * root
            for start in range(0, a.shape[1], _COLUMNS):
                columns = slice(start, start + _COLUMNS)
                self._sums[start:, columns] += (a[:, start:].T @ a[:, columns]).double()
            self.cross += (a.T @ y).double()
            self.square += y.double().square().sum()
            self.weight += w.double().sum()
            self.rows += (w > 0).sum()

    def tensors(self) -> tuple[Tensor, ...]:
        """The sums, to be added up over processes in place."""
        self._is_whole = False
        return self._sums, self.cross, self.square, self.weight, self.rows

    def error(self, weight: Tensor) -> float:
        """sum w |A X' - Y|^2 / sum w |Y|^2 of the projection X `[outputs, inputs (and bias)]`, float64."""
        missing = (self.gram @ weight.T - 2 * self.cross).mul_(weight.T).sum() + self.square
        return float(missing.clamp(min=0) / self.square) if self.square > 0 else 0.0

    def missing(self, present: Tensor) -> Tensor:
        """C - G X' of the projection X: what its change has to bring, float64 `[inputs (and bias), outputs]`."""
        return self.cross - self.gram @ present.T

    def solve(self, present: Tensor, ridge: float, missing: Tensor | None = None) -> Tensor | None:
        """The projection `[outputs, inputs (and bias)]` that minimises the error plus the ridge on its change from
        `present`, float64; None where the equations have no one solution. missing: of `present`, where it is known."""
        diagonal = self.gram.diagonal()
        penalty = torch.full_like(self.gram[0], ridge * float(diagonal.mean()))
        penalty[diagonal == 0] = float(diagonal.mean())  # an input that is always zero, as padding is, stays as it was
        if self.bias:
            penalty[-1] = 0.0
        penalised = self.gram.clone()
        penalised.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(penalised)
        del penalised
        if int(failed):
            return None
        # The diagonal of the factor bounds the condition from below; beyond 1e14 nothing of the solution is left.
        diagonal = factor.diagonal()
        if float(diagonal.max() / diagonal.min()) > 1e7:
            return None
        return present + torch.cholesky_solve(self.missing(present) if missing is None else missing, factor).T


@dataclass(frozen=True)
class Fit:
    """A fitted projection; `ridge` by which (None: left as it was), and the relative squared error of its output,
    sum w |A W' - Y|^2 / sum w |Y|^2, on the held-out windows before and after."""

    linear: Linear
    ridge: float | None
    before: float
    after: float


def fit_linear(linear: Linear, fitting: NormalEquations, held_out: NormalEquations, ridges: Sequence[float]) -> Fit:
    """The projection refitted to the `fitting` sums with the ridge that errs least on the `held_out` sums, left as it
    was where none errs less.

    Of several ridges the best is taken; while that is the smallest or the largest tried, the next one beyond is tried
    too. A single ridge is used whatever it brings. Inputs that are always zero leave everything as it was.
    ArithmeticError when no ridge gives equations that can be solved.
    """
    present = linear.weight.double().to(fitting.gram.device)
    if fitting.bias:
        bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(len(linear.weight))
        present = torch.cat([present, bias.double().to(present.device).unsqueeze(1)], 1)
    before, missing = held_out.error(present), fitting.missing(present)
    if float(fitting.weight) > 0 and not bool(fitting.gram.diagonal().any()):
        return Fit(linear, None, before, before)
    best: tuple[float, float, Tensor] | None = None
    tried: list[float] = []
    waiting = sorted(ridges)
    while waiting:
        tried.append(waiting.pop(0))
        solution = fitting.solve(present, tried[-1], missing)
        if solution is not None:
            after = held_out.error(solution)
            if best is None or after < best[0]:
                best = after, tried[-1], solution
        if not waiting and best is not None and len(ridges) > 1:
            waiting = _beyond(best[1], tried)
    if best is None:
        raise ArithmeticError(
            f"{int(fitting.rows)} weighted tokens do not determine {fitting.gram.shape[0]} inputs with a ridge of"
            f" {', '.join(map(str, ridges))}"
        )
    after, ridge, solution = best
    if len(ridges) > 1 and after >= before:
        return Fit(linear, None, before, before)
    return Fit(_as_linear(solution, linear, fitting.bias), ridge, before, after)


def _beyond(best: float, tried: Sequence[float]) -> list[float]:
    """The ridge to try next: beyond the best one, where that is at an end of those tried."""
    for end, further in ((min(tried), best / RIDGE_STEP), (max(tried), best * RIDGE_STEP)):
        if best == end and RIDGE_LIMITS[0] <= further <= RIDGE_LIMITS[1]:
            return [further]
    return []


def _as_linear(solution: Tensor, linear: Linear, has_bias: bool) -> Linear:
    """Rounded once, to the projection's own dtype and device."""
    solution = solution.to(linear.weight.device)
    if not has_bias:
        return Linear(solution.to(linear.weight.dtype).contiguous(), linear.bias)
    return Linear(
        solution[:, :-1].to(linear.weight.dtype).contiguous(), solution[:, -1].to(linear.weight.dtype).contiguous()
    )
