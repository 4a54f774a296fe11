"""What a comparison is asked for: all its options, their defaults, their checks, and the command that repeats it.

The command line takes its defaults from here, so nothing heavy is imported before a configuration is made.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyprune.errors import InputError
from pyprune.study.protocols import Protocol, protocol_named

if TYPE_CHECKING:
    import torch

    from pyprune.study.depth_choice import DepthChoice
    from pyprune.study.evaluations import Evaluation

Path = str | os.PathLike[str]


_RENAMED = {"batches": "--batch", "pad_multiple": "--pad-to", "checkpoints": "--with"}


_OF_AN_EVALUATION = ("tasks", "limit", "data")
"""Fields that an evaluation holds, which gives their options itself."""


def options_of(config: type) -> dict[str, str]:
    """Field -> option of the command line, of a configuration's class: all fields with a plain default."""
    plain = [f.name for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING]
    return {name: _RENAMED.get(name, f"--{name.replace('_', '-')}") for name in plain}


def attribute(option: str) -> str:
    """The attribute under which argparse keeps an option's value."""
    return option.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class CalibrationConfig:
    """The calibration windows: `samples` windows of `seq_len` tokens of `text`, drawn by `seed`.

    `text`, `field` (of JSON lines), `packing` and `bos` as in `pyprune.scoring.calibration`. InputError for windows
    that cannot be drawn.
    """

    text: Path | None = None
    field: str | None = None
    samples: int = 10
    seq_len: int = 128
    seed: int = 0
    packing: str = "packed"
    bos: str = "none"

    def __post_init__(self) -> None:
        from pyprune.scoring.calibration import check_window_options

        check_window_options(self.samples, self.seq_len, self.seed, self.packing, self.bos)

    @classmethod
    def from_options(cls, options: object) -> CalibrationConfig:
        """From the command line's options."""
        return cls(**_values(cls, options))

    def to_json(self) -> dict[str, Any]:
        """All but the text, which results name by its fingerprint."""
        return {name: getattr(self, name) for name in ("samples", "seq_len", "seed", "field", "packing", "bos")}


def _default_evaluations() -> tuple[Evaluation, ...]:
    from pyprune.study.evaluations import DEFAULT

    return DEFAULT


@dataclass(frozen=True)
class CompareConfig:
    """What `compare` measures.

    `ratios`: shares of all parameters to remove, kept as percentages. `batches`: prompts at a time. `protocol`: a name
    or a Protocol, kept as the latter. `dtype`: of all rows when they are timed and evaluated, a torch dtype or its
    name, kept as the latter. `pad_multiple`: of neurons, for the padded rows. `methods`: width methods
    (`pyprune.width`). `device`: where all of it runs. `eval_text`: held-out text, None for the demonstration's.
    `criterion`, `unit`, `protect`, `search`: how the depth row's units are chosen, as in `pyprune.score`,
    `pyprune.depth` and `pyprune.search`; `depth_criteria` in place of `criterion`: a depth row for each, "taylor+" and
    the like with the first four and the last two blocks protected. `checkpoints`: further rows, a mapping or pairs of a
    name and whatever `pyprune.load` takes. `tasks`, `limit`, `data`: accuracy on tasks, as in `pyprune.evaluate`.
    `evaluations`: what is measured of quality; that of the tasks is added to it.
    InputError for any value that is not accepted.
    """

    ratios: Sequence[str | float] = ("20%",)
    batches: Sequence[int] = (1, 8)
    protocol: str | Protocol = "quick"
    dtype: str | torch.dtype = "bfloat16"
    calibration: CalibrationConfig = dataclasses.field(default_factory=CalibrationConfig)
    pad_multiple: int = 64
    methods: Sequence[str] = ("wanda-sp",)
    device: str | torch.device = "cpu"
    eval_text: Path | None = None
    criterion: str = "ppl"
    depth_criteria: Sequence[str] | None = None
    unit: str = "block"
    protect: str | None = None
    search: str = "one-shot"
    checkpoints: Mapping[str, Any] | Sequence[tuple[str, Any]] = ()
    tasks: Sequence[str] | None = None
    limit: int | None = None
    data: Path | None = None
    evaluations: tuple[Evaluation, ...] = dataclasses.field(default_factory=_default_evaluations)

    def __post_init__(self) -> None:
        normal: dict[str, Any] = {
            "protocol": protocol_named(self.protocol),
            "ratios": ratio_names(self.ratios),
            "batches": tuple(self.batches),
            "methods": tuple(self.methods),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "depth_criteria": None if self.depth_criteria is None else tuple(self.depth_criteria),
            "checkpoints": checkpoint_pairs(self.checkpoints),
            "tasks": None if self.tasks is None else tuple(self.tasks),
            "evaluations": with_tasks(self.evaluations, self.tasks, self.limit, self.data),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        check_batches(self.batches)
        check_methods(self.methods)
        _require_different("rows", self._row_names())
        check_evaluations(self.evaluations)
        _ = self.torch_dtype
        if self.pad_multiple < 2:
            raise InputError(f"pad multiple {self.pad_multiple}: an integer of at least 2 is expected")

    @classmethod
    def of(cls, **options: Any) -> CompareConfig:
        """From all options side by side, those of the calibration among them. TypeError for one that there is not."""
        names = {f.name for f in dataclasses.fields(CalibrationConfig)}
        calibration = CalibrationConfig(**{name: value for name, value in options.items() if name in names})
        rest = {name: value for name, value in options.items() if name not in names}
        return cls(**{"calibration": calibration, **rest})

    @classmethod
    def from_options(cls, options: object) -> CompareConfig:
        """From the command line's options."""
        return cls(calibration=CalibrationConfig.from_options(options), **_values(cls, options))

    @property
    def depth_choices(self) -> tuple[DepthChoice, ...]:
        """What chooses the units of each depth row; InputError for what there is not."""
        from pyprune.study.depth_choice import depth_choices

        if self.depth_criteria is not None and self.criterion != CompareConfig.criterion:
            raise InputError(
                f"criterion {self.criterion} and depth criteria {','.join(self.depth_criteria)}: one of the two is"
                " accepted, not both"
            )
        criteria = (self.criterion,) if self.depth_criteria is None else self.depth_criteria
        _require_different("depth criteria", criteria)
        return depth_choices(criteria, self.unit, self.protect, self.search)

    def _row_names(self) -> list[str]:
        """The names of all rows."""
        from pyprune.study.labels import ORIGINAL, padded

        methods = [choice.method for choice in self.depth_choices]
        methods += [form for method in self.methods for form in (method, padded(method))]
        pruned = [f"{method} {ratio}" for ratio in self.ratios for method in methods]
        return [ORIGINAL, *pruned, *(name for name, _ in checkpoint_pairs(self.checkpoints))]

    @property
    def timing(self) -> Protocol:
        """The protocol."""
        assert isinstance(self.protocol, Protocol)  # made one above
        return self.protocol

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        import torch

        dtype = getattr(torch, str(self.dtype), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"dtype {self.dtype}: float32, bfloat16 or float16 is expected")
        return dtype

    def to_json(self) -> dict[str, Any]:
        """The settings, as they stand in the results."""
        return {
            "ratios": list(self.ratios),
            "batches": list(self.batches),
            "dtype": self.dtype,
            **self.calibration.to_json(),
            "pad_multiple": self.pad_multiple,
            "methods": list(self.methods),
            "device": self.device,
            "criteria": [choice.criterion_name for choice in self.depth_choices],
            "unit": self.unit,
            "protect": self.protect,
            "search": self.search,
            "checkpoints": {name: checkpoint_name(spec) for name, spec in checkpoint_pairs(self.checkpoints)},
        }

    def argv(self, spec: str) -> list[str]:
        """The command that measures this again: every option that has a value; texts and checkpoints by the last part
        of their paths, as folders are not published."""
        arguments = ["pyprune", "compare", spec]
        for config in (self, self.calibration):
            for name, option in options_of(type(config)).items():
                value = getattr(config, name)
                if name == "checkpoints":
                    for row, spec_of_row in value:
                        arguments += [option, f"{row}={checkpoint_name(spec_of_row)}"]
                elif value is not None and name not in _OF_AN_EVALUATION:
                    arguments += [option, _word(name, value)]
        for evaluation in self.evaluations:
            arguments += evaluation.argv()
        return [*arguments, "--out", "compare"]

    def command(self, spec: str) -> str:
        """`argv` as a line for a shell."""
        return shlex.join(self.argv(spec))


def ratio_names(ratios: Sequence[str | float]) -> tuple[str, ...]:
    """The ratios as percentages, each once; InputError for none, a repeated one, a count, or one outside (0, 1)."""
    from pyprune.pruning import parse_ratio

    names = tuple(f"{100 * parse_ratio(str(ratio)):g}%" for ratio in ratios)
    _require_different("ratios", names)
    return names


def check_batches(batches: Sequence[int]) -> None:
    """Raise InputError for no or repeated batch sizes, and for one that the engine does not take."""
    from pyprune.runtime.engine import MAX_BATCH

    _require_different("batch", batches)
    for batch in batches:
        if not 1 <= batch <= MAX_BATCH:
            raise InputError(f"batch {batch}: 1 to {MAX_BATCH} prompts are accepted")


def checkpoint_pairs(checkpoints: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Name and model of each further row; InputError for a name that cannot be one."""
    pairs = tuple(checkpoints.items() if isinstance(checkpoints, Mapping) else map(tuple, checkpoints))
    for name, _ in pairs:
        if not isinstance(name, str) or not name.strip() or "=" in name or not name.isprintable():
            raise InputError(f"checkpoint {name!r}: a name without = is expected")
    return pairs


def checkpoint_name(spec: Any) -> str:
    """What a further row's model is called in results: the last part of a path, or the model's own name."""
    if isinstance(spec, (str, os.PathLike)):
        text = os.fspath(spec)
        return os.path.basename(os.path.abspath(text)) if os.path.exists(text) else text
    return str(getattr(spec, "name", type(spec).__name__))


def with_tasks(
    evaluations: Sequence[Evaluation], tasks: Sequence[str] | None, limit: int | None, data: Path | None
) -> tuple[Evaluation, ...]:
    """The evaluations with that of these tasks; InputError for a limit or data without any."""
    from pyprune.study.evaluations import Accuracy

    if tasks is None:
        for name, value in (("limit", limit), ("data", data)):
            if value is not None:
                raise InputError(f"{name} {value}: belongs to tasks, and none were named")
        return tuple(evaluations)
    accuracy = Accuracy(tuple(tasks), limit, None if data is None else os.fspath(data))
    return (*(evaluation for evaluation in evaluations if evaluation != accuracy), accuracy)


def check_methods(methods: Sequence[str]) -> None:
    """Raise InputError for no or repeated width methods, or one that there is not."""
    from pyprune.pruning.width import METHODS

    _require_different("methods", methods)
    for method in methods:
        if method not in METHODS:
            raise InputError(f"method {method!r}: {', '.join(METHODS)} are accepted")


def check_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Raise InputError for no or repeated evaluations, or two that name a column alike."""
    _require_different("evaluations", [evaluation.name for evaluation in evaluations])
    _require_different("columns", [column.name for evaluation in evaluations for column in evaluation.columns])


def _require_different(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) < len(values):
        listed = ", ".join(map(str, values)) or "none"
        raise InputError(f"{name} {listed}: one or more values are expected, all different")


def _values(config: type, options: object) -> Mapping[str, Any]:
    return {name: getattr(options, attribute(option)) for name, option in options_of(config).items()}


def _word(name: str, value: Any) -> str:
    if name in ("text", "eval_text"):
        from pyprune.scoring.calibration import public_name

        return public_name(value)
    if isinstance(value, Protocol):
        return value.name
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
