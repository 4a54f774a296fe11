"""What a family of models is to pyprune: names and sizes in the formats it is read from and written to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyprune.errors import InputError
from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear
from pyprune.models.records import is_whole
from pyprune.models.rope import context_length, rope_from_config
from pyprune.models.tensors import TensorSource, one_line

# Hugging Face's names of a Decoder's parts: all families that descend from Llama share them.
_HF_TOP = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head.weight": "lm_head.weight"}
_HF_BLOCK = {
    "mha.norm": "input_layernorm.weight",
    "mha.q": "self_attn.q_proj",
    "mha.k": "self_attn.k_proj",
    "mha.v": "self_attn.v_proj",
    "mha.o": "self_attn.o_proj",
    "mha.q_norm": "self_attn.q_norm.weight",
    "mha.k_norm": "self_attn.k_norm.weight",
    "ffn.norm": "post_attention_layernorm.weight",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
# llama.cpp's names of the same parts.
_GGUF_TOP = {"embedding": "token_embd.weight", "norm": "output_norm.weight", "head.weight": "output.weight"}
_GGUF_BLOCK = {
    "mha.norm": "attn_norm.weight",
    "mha.q": "attn_q",
    "mha.k": "attn_k",
    "mha.v": "attn_v",
    "mha.o": "attn_output",
    "mha.q_norm": "attn_q_norm.weight",
    "mha.k_norm": "attn_k_norm.weight",
    "ffn.norm": "ffn_norm.weight",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def _rename(part: str, top: dict[str, str], block: dict[str, str], prefix: str) -> str:
    if part in top:
        return top[part]
    _, position, inner = part.split(".", 2)
    if inner in block:
        return f"{prefix}.{position}.{block[inner]}"
    inner, kind = inner.rsplit(".", 1)
    return f"{prefix}.{position}.{block[inner]}.{kind}"


def hf_name(part: str) -> str:
    """Hugging Face's name of a Decoder's part: "blocks.3.mha.q.weight" is "model.layers.3.self_attn.q_proj.weight"."""
    return _rename(part, _HF_TOP, _HF_BLOCK, "model.layers")


def gguf_name(part: str) -> str:
    """llama.cpp's name of a Decoder's part: "blocks.3.mha.q.weight" is "blk.3.attn_q.weight"."""
    return _rename(part, _GGUF_TOP, _GGUF_BLOCK, "blk")


def transformers_config(config: dict[str, Any], where: str) -> Any:
    """The transformers configuration object of a plain dict; InputError when transformers refuses it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    plain = {key: value for key, value in config.items() if key != "transformers_version"}
    try:
        return CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
    except Exception as error:  # each validator of transformers has exceptions of its own
        raise InputError(f"{where}: configuration refused by transformers ({one_line(error)})") from None


@dataclass(frozen=True)
class BlockSizes:
    """Everything that a configuration says about a block; two blocks are alike when these are equal."""

    heads: int
    kv_heads: int
    head_dim: int
    width: int
    attention_bias: str
    """Which of q, k, v, o have a bias."""
    ffn_bias: str
    """Which of gate, up, down have a bias."""
    qk_norm: bool

    def extras(self) -> str:
        """What a block has beside its weights, in words: "biases on q k v, no q/k-norm"."""
        biases = f"{self.attention_bias} {self.ffn_bias}".strip()
        return f"{f'biases on {biases}' if biases else 'no biases'}, {'' if self.qk_norm else 'no '}q/k-norm"

    @classmethod
    def of(cls, block: Block) -> BlockSizes:
        """The sizes of a block; InputError naming the block when a half is missing."""
        for half, title in ((block.mha, "attention"), (block.ffn, "FFN")):
            if half is None:
                raise InputError(
                    f"only uniform models can be saved as plain checkpoints so far: block {block.index} has no {title}"
                )
        mha, ffn = block.mha, block.ffn
        return cls(
            mha.heads,
            mha.kv_heads,
            mha.head_dim,
            ffn.width,
            " ".join(name for name in ("q", "k", "v", "o") if getattr(mha, name).bias is not None),
            " ".join(name for name in ("gate", "up", "down") if getattr(ffn, name).bias is not None),
            mha.q_norm is not None,
        )


def uniform_sizes(decoder: Decoder) -> BlockSizes | None:
    """The sizes that all blocks share, None for a decoder without blocks.

    InputError naming the first block (by its original index) that lacks a half or differs from the first one.
    """
    first: BlockSizes | None = None
    for block in decoder.blocks:
        sizes = BlockSizes.of(block)
        first = first or sizes
        for name, value in vars(sizes).items():
            if value != getattr(first, name):
                raise InputError(
                    f"only uniform models can be saved as plain checkpoints so far: block {block.index} has"
                    f" {name} {value or 'none'}, block {decoder.blocks[0].index} has {getattr(first, name) or 'none'}"
                )
    return first


def windows_of(blocks: Sequence[Block]) -> list[int]:
    """The attention window of each block. One without attention has that of the next that has it, or of the one before:
    it lends the other its place in transformers' cache."""
    windows: list[int] = []
    for place in range(len(blocks)):
        ahead = (block.mha.window for block in blocks[place:] if block.mha is not None)
        windows.append(next(ahead, windows[-1] if windows else 0))
    return windows


def with_sizes(config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
    """`config` with these numbers of heads and of neurons, under the names that all families share."""
    return {
        **config,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.width,
    }


class Family:
    """One family of decoder-only models. A subclass states what differs from Llama's scheme and is registered in
    `families.FAMILIES`."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in config.json."""
    written_as: ClassVar[tuple[str, ...]] = ()
    """Values of `model_type` that `sized_config` gives; empty: the same."""
    gguf_architectures: ClassVar[tuple[str, ...]] = ()
    """Values of `general.architecture` in GGUF files."""
    gguf_permutes_qk: ClassVar[bool] = False
    """Whether llama.cpp's converter interleaves the rows of q and k of each head (its own form of RoPE)."""

    def attention_bias(self, config: dict[str, Any]) -> str:
        """Which of q, k, v, o have a bias."""
        raise NotImplementedError

    def ffn_bias(self, config: dict[str, Any]) -> str:
        """Which of gate, up, down have a bias."""
        raise NotImplementedError

    def qk_norm(self, config: dict[str, Any]) -> bool:
        """Whether each head of q and k is normalised."""
        return False

    def windows(self, config: dict[str, Any]) -> list[int]:
        """The window of each block's attention (`MHA.window`), 0 for none."""
        return [0] * config["num_hidden_layers"]

    def sized_config(self, config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
        """`config` with these sizes in every block, in a form that plain transformers loads; else InputError."""
        raise NotImplementedError

    def windowed_config(self, config: dict[str, Any], windows: Sequence[int]) -> dict[str, Any]:
        """`config` with these windows, one a block, in a form that plain transformers loads; else InputError."""
        if any(windows):
            raise InputError(f"a window of {max(windows)} positions: a {config['model_type']} has none")
        return config

    def check(self, config: dict[str, Any], where: str) -> None:
        """InputError when `config` describes what a Decoder cannot express."""
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                    "vocab_size", "max_position_embeddings"):  # fmt: skip
            if not is_whole(config.get(key)) or config[key] < 1:
                raise InputError(f"{where}: {key} is {config.get(key)}; a positive integer is expected")
        if not is_whole(config.get("num_hidden_layers")) or config["num_hidden_layers"] < 0:
            raise InputError(f"{where}: num_hidden_layers is {config.get('num_hidden_layers')}; a count is expected")
        if config["num_attention_heads"] % config["num_key_value_heads"]:
            raise InputError(
                f"{where}: num_attention_heads {config['num_attention_heads']} is not a multiple of"
                f" num_key_value_heads {config['num_key_value_heads']}"
            )
        if config["head_dim"] % 2:
            raise InputError(f"{where}: head_dim {config['head_dim']} is odd; an even one is expected")
        if config.get("hidden_act") != "silu":
            raise InputError(f"{where}: hidden_act {config.get('hidden_act')} is not supported; accepted: silu")
        rope = config.get("rope_parameters")
        if not isinstance(rope, dict):
            raise InputError(f"{where}: rope_parameters is {rope!r}; an object is expected")
        for key, value in (("rms_norm_eps", config.get("rms_norm_eps")), ("rope_theta", rope.get("rope_theta"))):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InputError(f"{where}: {key} is {value!r}; a positive number is expected")
        if not isinstance(rope.get("rope_type", "default"), str):
            raise InputError(f"{where}: rope_type is {rope['rope_type']!r}; a name is expected")
        for key in ("per_layer_config", "quantization_config"):
            if config.get(key):
                raise InputError(f"{where}: {key} is not supported; a uniform float model is accepted")

    def config_from_dict(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """A config.json as transformers completes it (old and new spellings alike), checked."""
        # transformers leaves this mark on a model it read from GGUF, although the weights are plain floats by then.
        quantization = raw.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method") == "gguf":
            raw = {key: value for key, value in raw.items() if key != "quantization_config"}
        if raw.get("per_layer_config"):  # transformers would fail on it in its own words
            raise InputError(f"{where}: per_layer_config is not supported; a uniform float model is accepted")
        config = transformers_config(raw, where).to_diff_dict()
        for key in ("transformers_version", "_name_or_path"):
            config.pop(key, None)
        # Where a configuration names no head size, its model divides the hidden size.
        config["head_dim"] = config.get("head_dim") or config["hidden_size"] // max(1, config["num_attention_heads"])
        self.check(config, where)
        return config

    def decoder(
        self, config: dict[str, Any], source: TensorSource, *, name: str, where: str, dtype: torch.dtype,
        device: torch.device,
    ) -> Decoder:  # fmt: skip
        """Read a uniform decoder of this family from `source`, `config` being checked already."""
        hidden, head_dim = config["hidden_size"], config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        width, windows = config["intermediate_size"], self.windows(config)
        attention_bias, ffn_bias = self.attention_bias(config).split(), self.ffn_bias(config).split()

        def take(part: str, *shape: int) -> Tensor:
            return source.take(part, shape, dtype, device)

        def linear(half: str, name: str, out: int, inner: int, biased: list[str]) -> Linear:
            weight = take(f"{half}.{name}.weight", out, inner)
            return Linear(weight, take(f"{half}.{name}.bias", out) if name in biased else None)

        def block(index: int) -> Block:
            half = f"blocks.{index}.mha"
            norms = [take(f"{half}.{n}", head_dim) if self.qk_norm(config) else None for n in ("q_norm", "k_norm")]
            mha = MHA(
                norm=take(f"{half}.norm", hidden),
                q=linear(half, "q", heads * head_dim, hidden, attention_bias),
                k=linear(half, "k", kv_heads * head_dim, hidden, attention_bias),
                v=linear(half, "v", kv_heads * head_dim, hidden, attention_bias),
                o=linear(half, "o", hidden, heads * head_dim, attention_bias),
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                q_norm=norms[0],
                k_norm=norms[1],
                window=windows[index],
            )
            half = f"blocks.{index}.ffn"
            ffn = FFN(
                norm=take(f"{half}.norm", hidden),
                gate=linear(half, "gate", width, hidden, ffn_bias),
                up=linear(half, "up", width, hidden, ffn_bias),
                down=linear(half, "down", hidden, width, ffn_bias),
            )
            return Block(index, mha, ffn)

        tied = bool(config.get("tie_word_embeddings"))
        # As transformers reads it: a tied model may keep its one table under either name; two tables are tied only if
        # they are equal.
        table = "head.weight" if tied and not source.has("embedding") else "embedding"
        embedding = take(table, config["vocab_size"], hidden)
        head = embedding
        if not tied or source.has("head.weight"):
            head = take("head.weight", config["vocab_size"], hidden)
            if tied and not torch.equal(head, embedding):
                tied = False
                config = {**config, "tie_word_embeddings": False}
            elif tied:
                head = embedding
        rope = rope_from_config(config, where)
        return Decoder(
            name=name,
            config=config,
            embedding=embedding,
            blocks=tuple(block(index) for index in range(config["num_hidden_layers"])),
            norm=take("norm", hidden),
            head=Linear(head),
            tied=tied,
            rope=rope.to(device),
            eps=float(config["rms_norm_eps"]),
            max_positions=context_length(config, rope),
        )

    def state_dict(self, decoder: Decoder) -> dict[str, Tensor]:
        """The decoder's tensors under Hugging Face's names; a tied head is not repeated."""
        return {hf_name(part): tensor for part, tensor in decoder.tensors()}

    def plain_config(self, decoder: Decoder) -> dict[str, Any]:
        """The Hugging Face configuration with which plain transformers loads this decoder.

        InputError when it is not uniform (naming the first block that differs) or has no plain form.
        """
        sizes = uniform_sizes(decoder)
        if decoder.head.bias is not None:
            raise InputError(f"{decoder.name}: a bias on the LM head cannot be saved plainly")
        config = dict(decoder.config) if sizes is None else self.sized_config(decoder.config, sizes)
        for key in ("per_layer_config", "layer_types", "torch_dtype"):
            config.pop(key, None)
        config = self.windowed_config(config, windows_of(decoder.blocks))
        config["num_hidden_layers"] = len(decoder.blocks)
        config["tie_word_embeddings"] = decoder.tied
        config["dtype"] = str(decoder.dtype).removeprefix("torch.")
        return config
