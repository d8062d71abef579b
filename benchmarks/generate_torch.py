"""The PyTorch side of benchmarks/generate.py."""

import time
from pathlib import Path

import jax
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from benchmarks.generate import Times, clip
from benchmarks.torch_model import TorchOmniVinci, torch_batch
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.sequence.assemble import assemble
from omnivinci_jax.sequence.batch import Capacity


class TorchSide:
    """transformers' modules with random weights, saved in `folder` for the JAX side."""

    def __init__(self, config: OmniVinciConfig, folder: Path):
        """Creates and saves the weights."""
        torch.manual_seed(0)
        self.config, self.version = config, f"torch {torch.__version__}"
        self.model = TorchOmniVinci(config).eval()
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")

    @torch.inference_mode()
    def answer(self, frames: int, seed: int, new: int) -> Times:
        """Generates a greedy answer about a clip, with the cache of transformers' `generate` but not its overhead."""
        packed, model = clip(self.config, frames, seed), self.model
        capacity = Capacity(1, len(packed.row), frames, len(packed.windows), 1)
        group = assemble([packed], self.config, capacity)
        batch = torch_batch(jax.tree.map(lambda array: np.asarray(array)[None], group), "cpu")
        began = time.perf_counter()
        x = model.fill_slots(batch, model.vision_tokens(batch.tiles), model.sound_tokens(batch.windows))
        encoded = time.perf_counter()
        cache = DynamicCache(config=model.llm.config)
        out = model.llm(inputs_embeds=x, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens = [out.logits[0, -1].argmax().item()]
        first = time.perf_counter()
        while len(tokens) < new:
            out = model.llm(input_ids=torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True)
            tokens.append(out.logits[0, -1].argmax().item())
        return Times(tokens, encoded - began, first - encoded, (time.perf_counter() - first) / (new - 1))

    @torch.inference_mode()
    def batched(self, prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
        """Answers text prompts in one batch of transformers' `generate`; returns tokens per second and the answers."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        began = time.perf_counter()
        out = self.model.llm.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
        )
        return out[:, longest:].numel() / (time.perf_counter() - began), out[:, longest:].tolist()

    def bandwidth(self) -> float:
        """Measures the bytes per second that all cores can read: the best of several sums."""
        values, best = torch.ones(2**27), 0.0
        for _ in range(10):
            began = time.perf_counter()
            values.sum()
            best = max(best, values.nbytes / (time.perf_counter() - began))
        return best
