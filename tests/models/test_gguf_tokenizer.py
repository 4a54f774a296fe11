"""Tokenizers in GGUF files: read as transformers reads them, written as llama.cpp does, and which cannot be."""

from __future__ import annotations

import json

import gguf
import pytest
from gguf_llama_cpp import llama_tokens

from pyprune.errors import InputError
from pyprune.models import load
from pyprune.models.gguf_file import GGUFFile
from pyprune.models.gguf_tokenizer import Field, add_field, converted_fields
from pyprune.models.tokenizers import TokenizerSource, load_tokenizer
from pyprune.pruning import Pruning, apply

TEXT = (
    "It's 12345 o'clock, they'll say; HELLO's world.\n\n  Two  spaces\tand a tab.\r\nNew line: naïve café, Größe 3.14!"
    " def f(x):\n    return x**2 + 1000000  # 日本語 тест\n\n\n ... ??? '' \u00a0nbsp"
)
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
WORDS = {**BYTES, "use_regex": True}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PRE = {
    "gpt-2": WORDS,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, WORDS]},
    "llama-bpe": {"type": "Sequence", "pretokenizers": [split(ENDS + r"\p{N}{1,3}" + REST), BYTES]},
    "qwen2": {"type": "Sequence", "pretokenizers": [split(ENDS + r"\p{N}" + REST), BYTES]},
}


def byte_level_bpe(pre_tokenizer, ignore_merges=False, normalizer=None, bos=False):
    """A byte-level BPE trained on TEXT, with two special tokens and a word that is never split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core = Tokenizer.from_str(json.dumps({**json.loads(core.to_str()), "pre_tokenizer": pre_tokenizer,
                                          "normalizer": normalizer}))  # fmt: skip
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>"],
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
    core.add_tokens([AddedToken("o'clock")])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    data = json.loads(core.to_str())
    data["model"]["ignore_merges"] = ignore_merges
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def with_tokenizer(random_model, tmp_path):
    """A model's directory with a tokenizer in it, loaded."""

    def make(tokenizer, vocab_size=340):
        random_model("llama", vocab_size=vocab_size).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return load(tmp_path / "model")

    return make


@pytest.mark.parametrize("pre", PRE)
def test_a_byte_level_bpe_is_written_with_its_pre_tokenizer(with_tokenizer, written, pre):
    decoder = with_tokenizer(byte_level_bpe(PRE[pre], ignore_merges=pre == "llama-bpe", bos=pre == "gpt-2"))
    file, tokenizer = written(decoder), decoder.tokenizer()
    assert (file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.pre")) == ("gpt2", pre)
    tokens, kinds = file.value("tokenizer.ggml.tokens"), file.value("tokenizer.ggml.token_type")
    vocabulary = tokenizer.get_vocab()
    assert [tokens[index] for index in vocabulary.values()] == list(vocabulary)
    control, own, unused = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED
    assert kinds[:2] == [control, control]
    assert kinds[vocabulary["o'clock"]] == own
    assert kinds[len(vocabulary) :] == [unused] * (340 - len(vocabulary))
    assert len(tokens) == len(set(tokens)) == 340
    assert (file.value("tokenizer.ggml.bos_token_id"), file.value("tokenizer.ggml.eos_token_id")) == (0, 1)
    assert file.value("tokenizer.ggml.add_bos_token") is (pre == "gpt-2")
    assert file.value("tokenizer.ggml.add_eos_token") is False


@pytest.mark.parametrize("pre", PRE)
def test_llama_cpp_gives_the_tokens_of_transformers(with_tokenizer, tmp_path, llama_cpp, pre):
    normalizer = {"type": "NFC"} if pre == "qwen2" else None
    tokenizer = byte_level_bpe(PRE[pre], pre == "llama-bpe", normalizer, bos=pre == "gpt-2")
    decoder = with_tokenizer(tokenizer)
    decoder.save_gguf(tmp_path / "model.gguf")
    for text in (TEXT, "1234567 x'LL 1 22 333 4444", " </s> o'clock<s>", "\n\n \n\t\t a"):
        assert llama_tokens(llama_cpp, tmp_path / "model.gguf", text) == decoder.tokenizer()(text)["input_ids"], text


@pytest.mark.parametrize("pruning", [Pruning(blocks=[0]), Pruning(mha=[1])])
def test_a_tokenizer_comes_back_whatever_the_architecture(with_tokenizer, tmp_path, pruning):
    """transformers reads no tokenizer out of a file whose architecture it does not know, as deci."""
    decoder = apply(with_tokenizer(byte_level_bpe(WORDS)), pruning)
    decoder.save_gguf(tmp_path / "model.gguf")
    again = load(tmp_path / "model.gguf")
    assert again.tokenizer()(TEXT)["input_ids"] == decoder.tokenizer()(TEXT)["input_ids"]
    again.save(tmp_path / "saved")
    assert load(tmp_path / "saved").tokenizer()(TEXT)["input_ids"] == decoder.tokenizer()(TEXT)["input_ids"]


def sentencepiece_fields():
    """A tokenizer as Llama 2's: pieces with scores, bytes for what they lack."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581ab"]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (len(pieces) - len(kinds))
    return [
        Field("tokenizer.ggml.model", "llama"),
        Field("tokenizer.ggml.tokens", pieces, "ARRAY", "STRING"),
        Field("tokenizer.ggml.scores", [-float(place) for place in range(len(pieces))], "ARRAY", "FLOAT32"),
        Field("tokenizer.ggml.token_type", [int(kind) for kind in kinds], "ARRAY", "INT32"),
        Field("tokenizer.ggml.bos_token_id", 1),
        Field("tokenizer.ggml.eos_token_id", 2),
        Field("tokenizer.ggml.unknown_token_id", 0),
        Field("tokenizer.chat_template", "{{ messages[0].content }}"),
    ]


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "bpe"), ("llama", "sentencepiece"), ("qwen2", "bpe"), ("qwen3", "bpe"), ("mistral", "bpe")],
)
def test_a_files_tokenizer_is_the_one_that_auto_tokenizer_reads(write_gguf, architecture: str, kind: str):
    from transformers import AutoTokenizer

    bpe = byte_level_bpe(PRE["smollm"])
    bpe.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fields = converted_fields(bpe, "a model", 340) if kind == "bpe" else sentencepiece_fields()
    path = write_gguf(architecture=architecture, more=lambda writer: [add_field(writer, field) for field in fields])
    ours = load_tokenizer(TokenizerSource(str(path.parent), path.name), "a model")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
    assert ours.chat_template == theirs.chat_template is not None
    assert (ours.padding_side, ours.model_max_length) == (theirs.padding_side, theirs.model_max_length)
    assert ours("ab 12 abba")["input_ids"] == theirs("ab 12 abba")["input_ids"]


def unknown_split():
    return byte_level_bpe({"type": "Sequence", "pretokenizers": [split(r"\p{N}{1,2}"), BYTES]})


def word_level():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (word_level, "it is no byte-level BPE"),
        (unknown_split, "llama.cpp splits text otherwise; accepted are the ways of gpt-2, smollm, llama-bpe, qwen2"),
        (lambda: byte_level_bpe(WORDS, normalizer={"type": "NFKC"}), "llama.cpp splits text otherwise"),
        (lambda: byte_level_bpe(PRE["llama-bpe"]), "ignore_merges is False, not so in llama.cpp's llama-bpe"),
        (lambda: byte_level_bpe({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}),
         "llama.cpp splits text otherwise"),
    ],
)  # fmt: skip
def test_other_tokenizers_are_refused_and_the_rest_can_be_written(with_tokenizer, tmp_path, make, message):
    decoder = with_tokenizer(make())
    with pytest.raises(InputError, match=message):
        decoder.save_gguf(tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    decoder.save_gguf(tmp_path / "model.gguf", tokenizer=False)
    assert GGUFFile(tmp_path / "model.gguf").value("tokenizer.ggml.model") == "no_vocab"


def test_a_token_beyond_the_vocabulary_is_refused(with_tokenizer, tmp_path):
    decoder = with_tokenizer(byte_level_bpe(WORDS), vocab_size=300)
    with pytest.raises(InputError, match=r"it has token \d+, the model a vocabulary of 300"):
        decoder.save_gguf(tmp_path / "model.gguf")


def test_the_fields_of_a_gguf_file_are_copied(write_gguf, tmp_path):
    """1500 tokens: a list that the reader steps over until it is asked for."""

    def fields(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"tok{index}é" for index in range(1500)])
        writer.add_token_scores([-0.5 * index for index in range(1500)])
        writer.add_token_types([index % 3 for index in range(1500)])
        writer.add_bos_token_id(7)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ x }}")

    path = write_gguf(more=fields)
    load(path).save_gguf(tmp_path / "copy.gguf")
    one, other = GGUFFile(path), GGUFFile(tmp_path / "copy.gguf")
    keys = [key for key in one.metadata_keys() if key.startswith("tokenizer.")]
    assert len(keys) == 7
    assert [key for key in other.metadata_keys() if key.startswith("tokenizer.")] == keys
    assert [other.typed_value(key) for key in keys] == [one.typed_value(key) for key in keys]
    assert other.typed_value("tokenizer.ggml.tokens")[0][1499] == "tok1499é"
    assert other.typed_value("tokenizer.ggml.scores")[0][3] == -1.5
