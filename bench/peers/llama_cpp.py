"""llama.cpp through the low-level functions of llama-cpp-python: a batch of sequences, one token each a step."""

from __future__ import annotations

import collections
import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.peers.peer import Decoding, Peer
from pyprune.models.decoder import Decoder
from pyprune.models.tensors import one_line

CACHE_ROWS = 256  # llama.cpp rounds a sequence's share of the cache up to a multiple of this


class LlamaCpp(Peer):
    """The same weights from a GGUF file in the decoder's dtype; llama.cpp's own defaults but for sizes and threads.

    folder: where the files are written, one for each decoder. exact: a float32 cache without flash attention (which
    rounds it to float16), so that its results can be checked; llama.cpp's defaults are a float16 cache with it.
    """

    name = "llama.cpp"

    def __init__(self, folder: Path, exact: bool = False) -> None:
        self._folder, self._exact = folder, exact
        self._files: list[tuple[Decoder, Path]] = []

    def absent_reason(self) -> str | None:
        try:
            library()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            return f"llama-cpp-python does not load ({one_line(error)[:120]})"
        return None

    def open(self, decoder: Decoder, batch: int, length: int) -> Decoding:
        return LlamaDecoding(self._file(decoder), batch, length, self._exact)

    def describe(self) -> dict[str, str]:
        return {
            "llama-cpp-python": library().__version__,
            "system_info": library().llama_print_system_info().decode().strip(),
            "kv_cache": "F32" if self._exact else "F16",
        }

    def _file(self, decoder: Decoder) -> Path:
        for written, path in self._files:
            if written is decoder:
                return path
        path = self._folder / f"{len(self._files)}.gguf"
        decoder.save_gguf(path, tokenizer=False)
        self._files.append((decoder, path))
        return path


class LlamaDecoding(Decoding):
    """A model and a context with room for `batch` sequences; each token's logits are read and NumPy takes the argmax.

    RuntimeError with llama.cpp's last words when it refuses the file, the context or a batch.
    """

    def __init__(self, path: Path, batch: int, length: int, exact: bool) -> None:
        api = library()
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path.name}: {last_words()}")
        params = api.llama_context_default_params()
        self._batch = api.llama_batch_init(params.n_batch, 0, 1)
        params.n_ctx = batch * CACHE_ROWS * -(-length // CACHE_ROWS)
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        if exact:
            params.type_k = params.type_v = api.GGML_TYPE_F32
            params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context: {last_words()}")
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def prefill(self, prompts: Tensor) -> None:
        api = library()
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self._fill(prompts.tolist(), 0)
        self._position = prompts.shape[1]
        self._tokens = self.logits(len(prompts)).argmax(-1)

    def decode(self, steps: int) -> Tensor:
        chosen = []
        for _ in range(steps):
            self._fill(self._tokens[:, None].tolist(), self._position)
            self._tokens = self.logits(len(self._tokens)).argmax(-1)
            self._position += 1
            chosen.append(self._tokens)
        return torch.from_numpy(np.stack(chosen, 1))

    def logits(self, sequences: int) -> np.ndarray:
        """The last step's logits `[sequences, vocabulary]`, float32, in llama.cpp's memory."""
        return np.ctypeslib.as_array(library().llama_get_logits(self._context), (sequences, self._vocab))

    def close(self) -> None:
        api = library()
        api.llama_free(self._context)
        api.llama_model_free(self._model)
        api.llama_batch_free(self._batch)

    def _fill(self, rows: list[list[int]], position: int) -> None:
        """Run the tokens, row b from `position` on in sequence b; logits for the last one of each row."""
        batch, place = self._batch, 0
        for sequence, row in enumerate(rows):
            for offset, token in enumerate(row):
                batch.token[place] = token
                batch.pos[place] = position + offset
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = offset == len(row) - 1
                place += 1
        batch.n_tokens = place
        if code := library().llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gives {code}: {last_words()}")


_log: collections.deque[str] = collections.deque(maxlen=5)


def last_words() -> str:
    """The end of llama.cpp's log, in one line."""
    return one_line("".join(_log))


@functools.cache
def library() -> Any:
    """The package llama_cpp, its log kept here instead of on the terminal."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        _log.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.pyprune_log = keep  # or it would be collected, and called all the same
    llama_cpp.llama_backend_init()
    return llama_cpp
