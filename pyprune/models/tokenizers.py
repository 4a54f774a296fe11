"""Tokenizers, loaded when first asked for and copied from then on."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyprune.errors import InputError
from pyprune.models.gguf_architecture import RAGGED
from pyprune.models.gguf_file import GGUFFile, import_gguf
from pyprune.models.gguf_tokenizer import add_field, copied_fields
from pyprune.models.tensors import one_line

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class TokenizerSource:
    """Where a model's tokenizer comes from: a directory, a hub name, or a GGUF file; loaded when first needed."""

    path: str
    gguf_file: str | None = None
    from_hub: bool = False


def directory_source(directory: Path) -> TokenizerSource | None:
    """The tokenizer of a Hugging Face directory, None when it holds no tokenizer files."""
    return TokenizerSource(str(directory)) if any((directory / name).is_file() for name in _FILES) else None


def load_tokenizer(source: TokenizerSource | None, model: str) -> Any:
    """A transformers tokenizer, the caller's own to change. InputError naming `model` when it has none (`source` None),
    or when the files cannot be read."""
    if source is None:
        raise InputError(f"{model}: has no tokenizer; token ids are accepted where text is not")
    return copy.deepcopy(_read(source, _state(source)))


def tokenizer_to_save(source: TokenizerSource | None, model: str) -> Any:
    """The tokenizer to write with a model, None when it has none. One of the hub that cannot be had, as where the model
    there has none, is left out with a warning; else InputError as in `load_tokenizer`."""
    if source is None:
        return None
    try:
        return load_tokenizer(source, model)
    except InputError as error:
        if not source.from_hub:
            raise
        warnings.warn(f"{error}; {model} is saved without a tokenizer", stacklevel=4)
        return None


def _state(source: TokenizerSource) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files read: a tokenizer written anew under the same path is read anew."""
    folder = Path(source.path)
    files = sorted(folder.iterdir()) if source.gguf_file is None and folder.is_dir() else []
    if source.gguf_file is not None and (folder / source.gguf_file).is_file():
        files = [folder / source.gguf_file]
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())


@functools.lru_cache(maxsize=4)
def _read(source: TokenizerSource, state: tuple[tuple[str, int, int], ...]) -> Any:
    from transformers import AutoTokenizer

    path = Path(source.path) / (source.gguf_file or "")
    try:
        if source.gguf_file is None:
            return AutoTokenizer.from_pretrained(source.path)
        return _read_gguf(path)
    except Exception as error:  # each tokenizer library has exceptions of its own
        raise InputError(f"{path}: its tokenizer cannot be read ({one_line(error)})") from None


def _read_gguf(path: Path) -> Any:
    """What `AutoTokenizer.from_pretrained(folder, gguf_file=...)` gives, without the file's configuration: to learn the
    class from it transformers parses every token anew, which takes ten seconds for 50,000 tokens."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    with gguf_for_transformers(path) as readable:
        folder, name = readable.parent, readable.name
        architecture = GGUFFile(readable).value("general.architecture")
        if architecture == "llama":  # its files hold tokenizers of many kinds, which have no class of their own
            return PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=name)
        known = architecture if architecture in TOKENIZER_MAPPING_NAMES else None
        return AutoTokenizer.from_pretrained(folder, gguf_file=name, tokenizer_type=known)


@contextlib.contextmanager
def gguf_for_transformers(path: Path) -> Iterator[Path]:
    """The GGUF file, or where transformers does not know its architecture, one of Llama's with its tokenizer alone."""
    file = GGUFFile(path)
    if file.value("general.architecture") != RAGGED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        readable = Path(folder) / "tokenizer.gguf"
        writer = import_gguf(path).GGUFWriter(readable, "llama")
        for field in copied_fields(file):
            add_field(writer, field)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        yield readable
