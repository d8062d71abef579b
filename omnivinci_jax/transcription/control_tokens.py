"""Adds the control tokens of ASR RAG to the vocabulary of a model."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import traverse_util

from omnivinci_jax import model_dir
from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.chat import ACCEPT, INTEGRATE
from omnivinci_jax.sequence.tokenizer import Tokenizer

_TABLES = {"llm/embed_tokens/embedding": 0, "llm/lm_head/kernel": 1}  # and the axis of the vocabulary


def add_control_tokens(source: Path, out: Path) -> None:
    """Writes a model directory whose vocabulary has the two tokens; their rows are the mean of all others.

    Raises:
        UserError: the vocabulary has them already, or its tables are quantized; see also `model_dir.load`.
    """
    loaded = model_dir.load(source)
    if loaded.processor.tokenizer.token_id(ACCEPT) is not None:
        raise UserError(f"{source}: its vocabulary has {ACCEPT} already")
    config = loaded.model.config
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded.processor.tokenizer.copy_files(folder)
        extended = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        extended.add_special_tokens([ACCEPT, INTEGRATE])
        extended.save(str(folder / "tokenizer.json"))
        tokenizer = Tokenizer(folder)
        used, ids = config.text.vocab_size, np.array([tokenizer.token_id(token) for token in (ACCEPT, INTEGRATE)])
        size = max(used, tokenizer.vocab_size)
        config = config.replace(text=replace(config.text, vocab_size=size))
        flat = cast("dict[str, Any]", traverse_util.flatten_dict(loaded.params, sep="/"))
        for path, axis in _TABLES.items():
            if path in flat:
                if not isinstance(flat[path], jax.Array):
                    raise UserError(f"{source}: {path} is quantized: add the tokens first, then quantize")
                flat[path] = _extend(flat[path], axis, used, ids, config.text.padded_vocab_size)
        params = traverse_util.unflatten_dict(flat, sep="/")
        model_dir.save(out, config, params, tokenizer)


def _extend(table: jax.Array, axis: int, used: int, ids: np.ndarray, rows: int) -> jax.Array:
    rows_first = np.moveaxis(np.asarray(table, np.float32), axis, 0)
    extended = np.zeros((max(rows, len(rows_first)), *rows_first.shape[1:]), np.float32)
    extended[: len(rows_first)] = rows_first
    extended[ids] = rows_first[:used].mean(axis=0)
    return jnp.asarray(np.moveaxis(extended, 0, axis), table.dtype)
