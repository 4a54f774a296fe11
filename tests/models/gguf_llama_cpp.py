"""llama.cpp's tokens of a text."""

from __future__ import annotations


def llama_tokens(api, path, text):
    params = api.llama_model_default_params()
    params.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), params)
    try:
        data = text.encode()
        room = (api.llama_token * (2 * len(data) + 8))()
        count = api.llama_tokenize(api.llama_model_get_vocab(model), data, len(data), room, len(room), True, True)
        return list(room[:count])
    finally:
        api.llama_model_free(model)
