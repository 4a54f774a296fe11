"""A small model with a tokenizer, on disk, and texts for it."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyprune

SIZES = "shape:hidden=24,blocks=3,heads=4,kv_heads=2,head_dim=6,ffn=37,vocab=300"
SENTENCE = "the quick brown fox jumps over a lazy dog and then sleeps in the warm sun until evening comes"
PARAGRAPHS = (SENTENCE[i : i + 60] + SENTENCE[-3 * i - 40 : -2 * i - 1] + "." for i in range(12))
TEXT = "\n\n".join(PARAGRAPHS) + "\n"
ACCENTS = "Ein Café für 漢字 und 🙂, naïve façade.\n"


def byte_level_tokenizer(bos: bool = True):
    """A byte-level BPE of 290 tokens, in which a token is several characters or a part of one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>")


def save_model(directory: Path, bos: bool = True, sizes: str = SIZES) -> Path:
    """A random model and its tokenizer in a directory."""
    pyprune.load(sizes).save(directory)
    byte_level_tokenizer(bos).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("evaluation") / "small-model")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text(TEXT + ACCENTS, encoding="utf-8")
    return path
