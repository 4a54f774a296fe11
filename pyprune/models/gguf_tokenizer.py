"""Tokenizers in GGUF files: llama.cpp's fields, copied from a GGUF file or made from a tokenizer of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pyprune.errors import InputError
from pyprune.models.gguf_file import GGUFFile

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType


@dataclass(frozen=True)
class Field:
    """One entry of a file's metadata. `kind` and `item` (of an array): names of GGUFValueType, None for the usual."""

    key: str
    value: Any
    kind: str | None = None
    item: str | None = None


NO_TOKENIZER = (Field("tokenizer.ggml.model", "no_vocab"),)

# How llama.cpp's byte-level BPE splits text before it merges, by the pre-tokenizer of a tokenizer.json that does the
# same. llama.cpp has these patterns in its code (src/llama-vocab.cpp), under these names.
_GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_CONTRACTIONS_OR_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHER_RUNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2_SPLIT],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2_SPLIT],
    "llama-bpe": [_split(_CONTRACTIONS_OR_LETTERS + r"\p{N}{1,3}" + _OTHER_RUNS), _BYTES],
    "qwen2": [_split(_CONTRACTIONS_OR_LETTERS + r"\p{N}" + _OTHER_RUNS), _BYTES],
}
# llama.cpp leaves text as it is; Qwen's tokenizers compose it first (NFC), which changes composed text not at all.
_NORMALIZERS = {"qwen2": ({"type": "NFC"},)}


def copied_fields(file: GGUFFile) -> list[Field]:
    """The fields of a file's tokenizer, as they are."""
    fields = []
    for key in file.metadata_keys():
        if key.startswith("tokenizer."):
            value, types = file.typed_value(key)
            fields.append(Field(key, value, types[0].name, types[1].name if len(types) > 1 else None))
    return fields


def add_field(writer: Any, field: Field) -> None:
    """Add an entry to the metadata of a GGUFWriter."""
    from gguf import GGUFValueType

    kind = field.kind or {str: "STRING", bool: "BOOL", int: "UINT32", float: "FLOAT32"}[type(field.value)]
    item = None if field.item is None else GGUFValueType[field.item]
    writer.add_key_value(field.key, field.value, GGUFValueType[kind], item)


def converted_fields(tokenizer: Any, model: str, vocab_size: int) -> list[Field]:
    """The fields of a tokenizer of transformers, for a model with that name and vocabulary.

    It must be a byte-level BPE that splits text in one of the ways of `_PRE_TOKENIZERS`; InputError names what else it
    is.
    """

    def refused(reason: str) -> InputError:
        return InputError(f"{model}: its tokenizer cannot be written as GGUF: {reason}; --no-tokenizer leaves it out")

    if not getattr(tokenizer, "is_fast", False):
        raise refused(f"{type(tokenizer).__name__} has no tokenizer.json")
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = data["model"]
    if bpe.get("type") != "BPE" or bpe.get("byte_fallback"):
        raise refused("it is no byte-level BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if bpe.get(key):
            raise refused(f"its BPE has {key} {bpe[key]!r}")
    pre = _pre_tokenizer(data)
    if pre is None:
        raise refused(f"llama.cpp splits text otherwise; accepted are the ways of {', '.join(_PRE_TOKENIZERS)}")
    if bool(bpe.get("ignore_merges")) != (pre == "llama-bpe"):
        raise refused(f"ignore_merges is {bpe.get('ignore_merges')}, not so in llama.cpp's {pre}")
    tokens = {index: (token, _NORMAL) for token, index in bpe["vocab"].items()}
    for added in data.get("added_tokens") or ():
        tokens[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER_DEFINED)
    if max(tokens) >= vocab_size:
        raise refused(f"it has token {max(tokens)}, the model a vocabulary of {vocab_size}")
    table = [tokens.get(index, (f"[PAD{index}]", _UNUSED)) for index in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    fields = [
        Field("tokenizer.ggml.model", "gpt2"),
        Field("tokenizer.ggml.pre", pre),
        Field("tokenizer.ggml.tokens", [token for token, _ in table], "ARRAY", "STRING"),
        Field("tokenizer.ggml.token_type", [kind for _, kind in table], "ARRAY", "INT32"),
        Field("tokenizer.ggml.merges", merges, "ARRAY", "STRING"),
    ]
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = getattr(tokenizer, f"{ours}_token_id")
        if index is not None:
            fields.append(Field(f"tokenizer.ggml.{theirs}_token_id", index))
    # As it encodes, not as its configuration says: the post-processor decides.
    ids = tokenizer("a")["input_ids"]
    for ours, place in (("bos", 0), ("eos", -1)):
        index = getattr(tokenizer, f"{ours}_token_id")
        fields.append(Field(f"tokenizer.ggml.add_{ours}_token", index is not None and ids[place] == index))
    if isinstance(tokenizer.chat_template, str):
        fields.append(Field("tokenizer.chat_template", tokenizer.chat_template))
    return fields


def _pre_tokenizer(data: dict[str, Any]) -> str | None:
    """llama.cpp's name of a tokenizer.json's way to split text, None for any other."""
    splitting = data.get("pre_tokenizer") or {}
    steps = splitting["pretokenizers"] if splitting.get("type") == "Sequence" else [splitting]
    # `trim_offsets` is about positions in the text, not about tokens.
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, splitting_steps in _PRE_TOKENIZERS.items():
        if steps == splitting_steps and (
            data.get("normalizer") is None or data["normalizer"] in _NORMALIZERS.get(name, ())
        ):
            return name
    return None
