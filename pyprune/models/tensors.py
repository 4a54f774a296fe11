"""Where a model's tensors come from: safetensors files or a state dict, each tensor checked as it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.files import read_json
from pyprune.models.mapped_file import MappedFile
from pyprune.models.pages import Pages

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "f32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "f16": torch.float16,
}


def as_dtype(value: torch.dtype | str) -> torch.dtype:
    """The torch dtype that `value` names; InputError unless it is float32, bfloat16 or float16."""
    dtype = DTYPES.get(value.lower().removeprefix("torch.")) if isinstance(value, str) else value
    if dtype is None or dtype not in DTYPES.values():
        raise InputError(f"dtype {value}: not supported; accepted: float32, bfloat16, float16 (fp32, bf16, fp16)")
    return dtype


def one_line(error: BaseException | str) -> str:
    """A library's message without its line breaks."""
    return " ".join(str(error).split())


class TensorSource(ABC):
    """Tensors by the part names of `Decoder.tensors` ("blocks.3.mha.q.weight"), under whatever names the source keeps
    them; `name_of` turns one into the other."""

    shared = False
    """Whether the tensors read are someone's, to be shared where nothing changes; else each is read for us alone."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self.name_of = name_of
        self.pages = Pages()
        self.taken: set[str] = set()
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the parts that were asked for without their values

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Every tensor's name in the source."""

    @abstractmethod
    def where(self, name: str) -> str:
        """The file (or object) that holds, or should hold, the tensor."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor as stored."""

    def has(self, part: str) -> bool:
        return self.name_of(part) in self.names()

    def own_dtype(self, part: str) -> torch.dtype:
        """The dtype in which the source keeps `part`."""
        name = self.name_of(part)
        self._require(name)
        return self.read(name).dtype

    def require(self, part: str, shape: tuple[int, ...]) -> None:
        """InputError, naming tensor and file, when it is missing or has another shape; it is read later."""
        name = self.name_of(part)
        self._require(name)
        self._check_shape(name, self.shape(name), shape)

    def _check_shape(self, name: str, stored_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if stored_shape != shape:
            raise InputError(
                f"{self.where(name)}: tensor {name} has shape {list(stored_shape)}; the configuration asks for"
                f" {list(shape)}"
            )

    def take(self, part: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor in `dtype` on `device`; of a shared source the very one, where nothing has to change.

        InputError, naming tensor and file, when it is missing, has another shape, is not of a float type, or holds NaN
        or infinity (in the file or after the change of dtype).
        """
        return self._take(part, shape, dtype, device, self.shared)

    def take_mapped(self, part: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """As `take`, but left in its file where dtype and device allow it."""
        return self._take(part, shape, dtype, device, share=True)

    def _take(self, part: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, share: bool) -> Tensor:
        name = self.name_of(part)
        if device.type == "meta":  # sizes are all that is asked for (`load_sizes`)
            self.taken.add(name)
            self.shapes[part] = shape
            return torch.empty(shape, dtype=dtype, device=device)
        self._require(name)
        tensor = self._copied(name, shape, dtype, device, share)
        if not is_finite(tensor):
            where = f"{self.where(name)}: tensor {name}"
            if is_finite(self.read(name)):
                raise InputError(f"{where} does not fit {dtype}: infinite after the change; use bfloat16 or float32")
            raise InputError(f"{where} holds NaN or infinite values; finite weights are expected")
        return tensor

    def _copied(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, share: bool
    ) -> Tensor:
        """The tensor, which is there, in `dtype` on `device`, its shape and its kind of numbers checked."""
        stored = self.read(name)
        where = f"{self.where(name)}: tensor {name}"
        self._check_shape(name, tuple(stored.shape), shape)
        if not stored.is_floating_point() or stored.element_size() == 1:
            raise InputError(f"{where} is {stored.dtype}; weights of 16, 32 or 64-bit floats are accepted")
        if stored.is_meta:
            raise InputError(f"{where} has no data (meta device); load the model's weights first")
        # A file's tensors are copied at once: there they are aligned to 8 bytes only, and a mapped file that shrinks
        # kills the process.
        return self.pages.move(stored, dtype, device, share=share)

    def _require(self, name: str) -> None:
        if name not in self.names():
            raise InputError(f"{self.where(name)}: tensor {name} is missing")
        self.taken.add(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is there."""
        return tuple(self.read(name).shape)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. One pass without a temporary: 20 times isfinite().all() in bfloat16."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) and torch.isfinite(high))


class NoWeights(TensorSource):
    """A configuration without its weights: it gives sizes alone, on the meta device. A tied head is one table."""

    def __init__(self, name_of: Callable[[str], str] = lambda part: part) -> None:
        super().__init__(name_of)

    def names(self) -> Iterable[str]:
        return ("embedding",)

    def where(self, name: str) -> str:
        return "no weights"

    def read(self, name: str) -> Tensor:
        raise NotImplementedError("weights that were not read have no values")


class StateDictSource(TensorSource):
    """The tensors of a loaded model, shared and not copied."""

    shared = True

    def __init__(self, label: str, tensors: Mapping[str, Tensor], name_of: Callable[[str], str]) -> None:
        super().__init__(name_of)
        self._label = label
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def where(self, name: str) -> str:
        return self._label

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


class SafetensorsSource(TensorSource):
    """The safetensors file or shards of a Hugging Face directory."""

    def __init__(self, directory: Path, name_of: Callable[[str], str]) -> None:
        super().__init__(name_of)
        self._directory = directory
        self._files: dict[str, Path] = {}
        self._open: dict[Path, MappedFile] = {}
        for file in weight_files(directory):
            for name in self._handle(file).names():
                self._files[name] = file

    def _handle(self, file: Path) -> MappedFile:
        if file not in self._open:
            try:
                self._open[file] = MappedFile(file)
            except (ValueError, OSError) as error:
                raise InputError(f"{file}: not a whole safetensors file ({one_line(error)})") from None
        return self._open[file]

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def where(self, name: str) -> str:
        return str(self._files.get(name, self._directory))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._handle(self._files[name]).shape(name)

    def read(self, name: str) -> Tensor:
        try:
            return self._handle(self._files[name]).read(name)
        except ValueError as error:
            raise InputError(f"{self.where(name)}: tensor {name} cannot be read ({one_line(error)})") from None

    def _copied(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, share: bool
    ) -> Tensor:
        tensor = super()._copied(name, shape, dtype, device, share)
        if not share:
            self._handle(self._files[name]).release(name)
        return tensor


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory, by its index where it is sharded.

    InputError when there are none, when only pickled weights are there, or when the index names a file that is missing.
    """
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        data = read_json(index)
        table = data.get("weight_map") if isinstance(data, dict) else None
        if not isinstance(table, dict) or not table:
            raise InputError(f"{index}: no weight_map; a safetensors index is expected")
        for tensor, name in table.items():
            if not isinstance(name, str):
                raise InputError(f"{index}: weight_map has {str(name)[:200]} for {tensor}; a file's name is expected")
        files = [directory / name for name in dict.fromkeys(table.values())]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: is missing, but {index.name} names it")
        return files
    pickled = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise InputError(f"{directory / pickled[0]}: pickled weights are not read; model.safetensors is accepted")
    raise InputError(f"{directory}: no model.safetensors (nor model.safetensors.index.json)")
