"""What a family of models is to pyprune: names and sizes in the formats it is read from and written to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyprune.checks import is_int, is_number
from pyprune.errors import InputError
from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear
from pyprune.models.pages import Pages
from pyprune.models.rope import context_length, rope_from_config
from pyprune.models.sizes import BlockSizes, uniform_sizes, windows_of
from pyprune.models.streaming import StreamedBlocks
from pyprune.models.tensors import NoWeights, TensorSource, one_line

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


def with_sizes(config: dict[str, Any], sizes: BlockSizes) -> dict[str, Any]:
    """`config` with these numbers of heads and of neurons, under the names that all families share."""
    return {
        **config,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.width,
    }


def read_block(
    source: TensorSource, index: int, size: BlockSizes, hidden: int, window: int, dtype: torch.dtype,
    device: torch.device,
) -> Block:  # fmt: skip
    """One block of a source, at its place there, with the halves that its sizes speak of."""

    def take(part: str, *shape: int) -> Tensor:
        return source.take(f"blocks.{index}.{part}", shape, dtype, device)

    def linear(part: str, out: int, inner: int, biased: bool) -> Linear:
        weight = take(f"{part}.weight", out, inner)
        return Linear(weight, take(f"{part}.bias", out) if biased else None)

    def mha() -> MHA:
        biased, head_dim = size.attention_bias.split(), size.head_dim
        norms = [take(f"mha.{n}", head_dim) if size.qk_norm else None for n in ("q_norm", "k_norm")]
        return MHA(
            norm=take("mha.norm", hidden),
            q=linear("mha.q", size.heads * head_dim, hidden, "q" in biased),
            k=linear("mha.k", size.kv_heads * head_dim, hidden, "k" in biased),
            v=linear("mha.v", size.kv_heads * head_dim, hidden, "v" in biased),
            o=linear("mha.o", hidden, size.heads * head_dim, "o" in biased),
            heads=size.heads,
            kv_heads=size.kv_heads,
            head_dim=head_dim,
            q_norm=norms[0],
            k_norm=norms[1],
            window=window,
        )

    def ffn() -> FFN:
        biased = size.ffn_bias.split()
        return FFN(
            norm=take("ffn.norm", hidden),
            gate=linear("ffn.gate", size.width, hidden, "gate" in biased),
            up=linear("ffn.up", size.width, hidden, "up" in biased),
            down=linear("ffn.down", hidden, size.width, "down" in biased),
        )

    return Block(index, mha() if size.heads else None, ffn() if size.width else None)


def _streamed(
    read: Callable[[int], Block], source: TensorSource, sizes: Sequence[BlockSizes], hidden: int,
    windows: Sequence[int], dtype: torch.dtype,
) -> StreamedBlocks:  # fmt: skip
    """Blocks that `read` reads when they are run; that the source has all of their tensors is seen now."""
    outline = NoWeights(source.name_of)
    meta = torch.device("meta")
    blocks = [read_block(outline, i, size, hidden, windows[i], dtype, meta) for i, size in enumerate(sizes)]
    for part, shape in outline.shapes.items():
        source.require(part, shape)
    return StreamedBlocks(read, blocks)


class Family:
    """One family of decoder-only models. A subclass states what differs from Llama's scheme and is registered in
    `families.FAMILIES`."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in config.json."""
    written_as: ClassVar[tuple[str, ...]] = ()
    """Values of `model_type` that `sized_config` gives; empty: the same."""
    gguf_architectures: ClassVar[tuple[str, ...]] = ()
    """Values of `general.architecture` in GGUF files."""
    gguf_architecture: ClassVar[str] = ""
    """The one that a uniform model is written as; empty: none is known."""
    gguf_permutes_qk: ClassVar[bool] = False
    """Whether llama.cpp's converter interleaves the rows of q and k of each head (its own form of RoPE)."""
    gguf_optional_biases: ClassVar[bool] = False
    """Whether llama.cpp takes a bias on any projection of any block, there or not."""

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
            if not is_int(config.get(key)) or config[key] < 1:
                raise InputError(f"{where}: {key} is {config.get(key)}; a positive integer is expected")
        if not is_int(config.get("num_hidden_layers")) or config["num_hidden_layers"] < 0:
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
            if not is_number(value) or not 0 < value < math.inf:
                raise InputError(f"{where}: {key} is {value!r}; a positive number is expected")
        if not isinstance(rope.get("rope_type", "default"), str):
            raise InputError(f"{where}: rope_type is {rope['rope_type']!r}; a name is expected")
        for key in ("per_layer_config", "quantization_config"):
            if config.get(key):
                raise InputError(f"{where}: {key} is not supported; a uniform float model is accepted")

    def config_from_dict(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """A plain config.json as transformers completes it (old and new spellings alike), checked."""
        # transformers leaves this mark on a model it read from GGUF, although the weights are plain floats by then.
        quantization = raw.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method") == "gguf":
            raw = {key: value for key, value in raw.items() if key != "quantization_config"}
        if raw.get("per_layer_config"):  # transformers would fail on it in its own words
            raise InputError(f"{where}: per_layer_config is not supported; a uniform float model is accepted")
        return self.completed(transformers_config(raw, where).to_diff_dict(), where)

    def completed(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        """A configuration of transformers as a Decoder keeps it, checked."""
        for key in ("transformers_version", "_name_or_path"):
            config.pop(key, None)
        # Where a configuration names no head size, its model divides the hidden size.
        config["head_dim"] = config.get("head_dim") or config["hidden_size"] // max(1, config["num_attention_heads"])
        self.check(config, where)
        return config

    def sizes(self, config: dict[str, Any]) -> list[BlockSizes]:
        """The sizes of each block, which a plain configuration gives to all."""
        sizes = BlockSizes(
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            width=config["intermediate_size"],
            attention_bias=self.attention_bias(config),
            ffn_bias=self.ffn_bias(config),
            qk_norm=self.qk_norm(config),
        )
        return [sizes] * config["num_hidden_layers"]

    def decoder(
        self, config: dict[str, Any], source: TensorSource, *, name: str, where: str, dtype: torch.dtype,
        device: torch.device, sizes: Sequence[BlockSizes] | None = None, stream: bool = False,
    ) -> Decoder:  # fmt: skip
        """Read a decoder of this family from `source`, `config` being checked already. `sizes`: those of each block;
        None for `self.sizes(config)`. stream: blocks are read when they are run, and an embedding of its own stays in
        its file."""
        hidden, windows = config["hidden_size"], self.windows(config)
        sizes = self.sizes(config) if sizes is None else sizes

        def take(part: str, *shape: int) -> Tensor:
            return source.take(part, shape, dtype, device)

        def block(index: int) -> Block:
            return read_block(source, index, sizes[index], hidden, windows[index], dtype, device)

        if stream:
            source.pages = Pages(together=False)
        tied = bool(config.get("tie_word_embeddings"))
        # As transformers reads it: a tied model may keep its one table under either name; two tables are tied only if
        # they are equal.
        table = "head.weight" if tied and not source.has("embedding") else "embedding"
        take_table = source.take_mapped if stream and not tied else source.take
        embedding = take_table(table, (config["vocab_size"], hidden), dtype, device)
        head = embedding
        if not tied or source.has("head.weight"):
            head = take("head.weight", config["vocab_size"], hidden)
            if tied and not torch.equal(head, embedding):
                tied = False
                config = {**config, "tie_word_embeddings": False}
            elif tied:
                head = embedding
        if stream:
            blocks: Sequence[Block] = _streamed(block, source, sizes, hidden, windows, dtype)
        else:
            blocks = tuple(block(index) for index in range(len(sizes)))
        rope = rope_from_config(config, where)
        return Decoder(
            name=name,
            config=config,
            embedding=embedding,
            blocks=blocks,
            norm=take("norm", hidden),
            head=Linear(head),
            tied=tied,
            rope=rope.to(device),
            eps=float(config["rms_norm_eps"]),
            max_positions=context_length(config, rope),
        )

    def plain_config(self, decoder: Decoder) -> dict[str, Any]:
        """The Hugging Face configuration with which plain transformers loads this decoder.

        InputError when it is not uniform (naming the first block that differs) or has no plain form.
        """
        sizes = uniform_sizes(decoder)
        config = self.decoder_config(decoder)
        if sizes is not None:
            config = self.sized_config(config, sizes)
        return self.windowed_config(config, windows_of(decoder.blocks))

    def decoder_config(self, decoder: Decoder) -> dict[str, Any]:
        """What any configuration of this decoder states beside the sizes and the windows of its blocks.

        InputError for a bias on the LM head, which none can state.
        """
        if decoder.head.bias is not None:
            raise InputError(f"{decoder.name}: a bias on the LM head cannot be saved")
        config = {key: value for key, value in decoder.config.items()
                  if key not in ("per_layer_config", "layer_types", "torch_dtype")}  # fmt: skip
        config["num_hidden_layers"] = len(decoder.blocks)
        config["tie_word_embeddings"] = decoder.tied
        config["dtype"] = str(decoder.dtype).removeprefix("torch.")
        return config
