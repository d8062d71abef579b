"""The JAX side of benchmarks/generate.py."""

import time
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from benchmarks.generate import Times, clip
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.media import encode_row
from omnivinci_jax.generate.request import Prompt, Request, Sampling, make_prompt
from omnivinci_jax.models.omnivinci import OmniVinci
from tests.parity.torch_weights import params_from_torch
from tests.tiny import NoEnd


class JaxSide:
    """An engine with the weights that the PyTorch side saved in `folder`."""

    def __init__(self, config: OmniVinciConfig, folder: Path):
        """Loads the weights."""
        self.config, self.version = config, f"jax {jax.__version__}"
        params = params_from_torch(load_file(folder / "weights.safetensors"), config)
        self.engine = Engine(OmniVinci(config), jax.device_put(params), NoEnd())
        self.media = np.zeros(0)

    def answer(self, frames: int, seed: int, new: int) -> Times:
        """Generates a greedy answer about a new clip."""
        packed = clip(self.config, frames, seed)
        began = time.perf_counter()
        self.media = encode_row(self.engine.model, self.engine.weights.rest, packed.row, packed.tiles, packed.windows)
        encoded = time.perf_counter()
        request, first = Request(self._prompt(packed, seed), Sampling(max_new_tokens=new)), None
        for _ in self.engine.run([request]):
            first = first or (time.perf_counter() if request.tokens else None)
        return Times(request.tokens, encoded - began, first - encoded, (time.perf_counter() - first) / (new - 1))

    def second(self, frames: int, seed: int) -> float:
        """Returns the seconds to the first token of another question about the clip of `answer`."""
        packed = clip(self.config, frames, seed, question=1)
        began = time.perf_counter()
        for _ in self.engine.run([Request(self._prompt(packed, seed), Sampling(max_new_tokens=1))]):
            pass
        return time.perf_counter() - began

    def token_bytes(self, positions: int) -> int:
        """Returns the bytes that a decode step must read: layers, final norm, head, earlier keys and values."""
        text, weights = self.config.text, self.engine.weights
        read = (weights.layers, weights.rest["llm"]["norm"], weights.rest["llm"]["lm_head"])
        past = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * positions * 4
        return sum(leaf.nbytes for leaf in jax.tree.leaves(read)) + past

    def _prompt(self, packed, seed: int) -> Prompt:
        return make_prompt(packed.row, self.media, seed * 2**32 + np.arange(len(self.media)))
