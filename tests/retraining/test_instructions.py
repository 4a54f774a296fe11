"""Instructions and conversations as samples: which tokens are learnt."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
import torch

import pyprune
from pyprune import InputError
from pyprune.retraining.instructions import WITH_INPUT, WITHOUT_INPUT, instruction_samples
from pyprune.retraining.samples import collated
from pyprune.scoring.losses import IGNORED

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (  # writes replies before the last one otherwise
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and loop.last %}(thought){% endif %}"
    "{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def decoder():
    return pyprune.load("shape:hidden=12,blocks=1,heads=2,kv_heads=1,head_dim=6,ffn=16,vocab=400")


@pytest.fixture
def tokenizer():
    """Bytes, and a token for the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def written(tmp_path, *rows, form="lines"):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows)) + "\n")
    return path


def learnt(sample, tokenizer):
    return tokenizer.decode(sample.labels[sample.labels != IGNORED])


@pytest.mark.parametrize("form", ["lines", "list"])
def test_of_alpaca_rows_the_output_and_the_end_are_learnt(decoder, tokenizer, tmp_path, form):
    rows = [
        {"instruction": "Add", "input": "1 1", "output": "2\n"},
        {"instruction": "Say ü", "input": "", "output": "ü"},
    ]
    read = instruction_samples(decoder, written(tmp_path, *rows, form=form), 600, tokenizer=tokenizer)
    samples = read.samples
    assert (read.name, read.dropped) == ("rows.jsonl", 0)
    assert [learnt(sample, tokenizer) for sample in samples] == ["2\n</s>", "ü</s>"]
    assert tokenizer.decode(samples[0].input_ids) == WITH_INPUT.format(instruction="Add", input="1 1") + "2\n</s>"
    assert tokenizer.decode(samples[1].input_ids) == WITHOUT_INPUT.format(instruction="Say ü") + "ü</s>"


def test_the_end_is_learnt_though_it_pads(decoder, tokenizer, tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "aaaa", "output": "b"}]
    samples = instruction_samples(decoder, written(tmp_path, *rows), 600, tokenizer=tokenizer).samples
    batch = collated(samples, tokenizer.pad_token_id)
    assert batch["attention_mask"][0].tolist()[:4] == [0, 0, 0, 1]  # on the left
    assert (batch["labels"][:, -1] == tokenizer.eos_token_id).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_padding_id_outside_the_vocabulary_is_passed_over(decoder, tokenizer, tmp_path, family):
    if family == "gpt_neox":
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        config = GPTNeoXConfig(
            vocab_size=400, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            bos_token_id=0, eos_token_id=0, max_position_embeddings=400,
        )  # fmt: skip
        decoder = pyprune.load_any(GPTNeoXForCausalLM(config).eval())
    rows = written(tmp_path, {"instruction": "a", "output": "b"}, {"instruction": "aaaa", "output": "b"})
    learned = [
        pyprune.retrain(
            replace(decoder, config={**decoder.config, "pad_token_id": pad}), instructions=rows, tokenizer=tokenizer,
            cutoff=300, steps=1, batch=2, micro_batch=2, held_out=0,
        )
        for pad in (0, -1, 400)
    ]  # fmt: skip
    for other in learned[1:]:
        pairs = zip(learned[0].tensors(), other.tensors(), strict=True)
        assert all(torch.equal(one, two) for (_, one), (_, two) in pairs)


def test_a_sample_is_cut_and_dropped_where_no_reply_remains(decoder, tokenizer, tmp_path):
    rows = [{"instruction": "a", "output": "b" * 50}, {"instruction": "a" * 300, "output": "b"}]
    prompt = len(WITHOUT_INPUT.format(instruction="a"))
    read = instruction_samples(decoder, written(tmp_path, *rows), prompt + 5, tokenizer=tokenizer)
    assert [learnt(sample, tokenizer) for sample in read.samples] == ["bbbbb"]
    assert read.dropped == 1
    with pytest.raises(InputError, match=r"no reply begins within 20 tokens .*all samples, 2,"):
        instruction_samples(decoder, written(tmp_path, *rows), 20, tokenizer=tokenizer)


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]


def test_of_a_conversation_only_the_assistant_is_learnt(decoder, tokenizer, tmp_path):
    tokenizer.chat_template = CHATML
    (sample,) = instruction_samples(decoder, written(tmp_path, {"messages": CHAT}), 600, tokenizer=tokenizer).samples
    assert learnt(sample, tokenizer) == "Hello</s>\nSo long</s>\n"
    assert tokenizer.decode(sample.input_ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_a_template_that_changes_earlier_replies_gives_a_sample_for_each(decoder, tokenizer, tmp_path):
    tokenizer.chat_template = FORGETFUL
    samples = instruction_samples(decoder, written(tmp_path, {"messages": CHAT}), 600, tokenizer=tokenizer).samples
    assert [learnt(sample, tokenizer) for sample in samples] == ["(thought)Hello</s>\n", "(thought)So long</s>\n"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (1, "line 1: a JSON int"),
        ({"text": "a"}, "no key 'instruction'"),
        ({"instruction": "a", "output": 3}, "output is '3'"),
        ({"messages": "a"}, "a list of objects"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "a role"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of the assistant"),
        ({"messages": CHAT}, "has no chat template"),
    ],
)
def test_rows_of_neither_form_are_told_by_their_line(decoder, tokenizer, tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        instruction_samples(decoder, written(tmp_path, row), 600, tokenizer=tokenizer)


def test_lines_that_are_no_json_are_told(decoder, tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\nno\n')
    with pytest.raises(InputError, match=r"rows\.jsonl line 2: not JSON"):
        instruction_samples(decoder, tmp_path / "rows.jsonl", 600, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_file_of_windows_reads_as_any_other(decoder, tokenizer, tmp_path, name):
    """With a byte order mark, and with its line endings."""
    content = b'\xef\xbb\xbf{"instruction": "a", "output": "b"}\r\n{"instruction": "c", "output": "d"}\r\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    samples = instruction_samples(decoder, tmp_path / name, 600, tokenizer=tokenizer).samples
    assert [learnt(sample, tokenizer) for sample in samples] == ["b</s>", "d</s>"]


def test_a_damaged_gzip_file_is_named(decoder, tokenizer, tmp_path):
    content = bytearray(gzip.compress(b'{"instruction": "a", "output": "b"}\n' * 40))
    content[12:20] = bytes(8)
    (tmp_path / "rows.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz: not a whole gzip file"):
        instruction_samples(decoder, tmp_path / "rows.jsonl.gz", 600, tokenizer=tokenizer)
