"""The model as a PyTorch user would build it from transformers' modules, for videos with one tile per frame.

It uses SDPA attention, skips SigLIP's unused last layer and avoids needless copies. A row has one conversation, with
padding only at the end, so causal attention needs no mask.
"""

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.time_embedding import frequencies
from omnivinci_jax.sequence.batch import AUDIO, TEXT, Batch
from tests.parity.torch_model import Merged


class TorchBatch(NamedTuple):
    """The arrays that the model reads, of a Batch with one group; `labels` is -100 where there is no loss."""

    tokens: Tensor
    slot_kind: Tensor
    slot_index: Tensor
    labels: Tensor
    tiles: Tensor
    windows: Tensor
    vision_times: Tensor
    audio_times: Tensor


def torch_batch(batch: Batch, device: str) -> TorchBatch:
    """Returns the arrays of a group as tensors.

    Raises:
        ValueError: several groups, several conversations in a row, or images tiled by Dynamic-S2.
    """
    if len(batch.tokens) != 1 or batch.segment_ids.max() > 1 or batch.s2_block.any():
        raise ValueError("the PyTorch side supports one group with one conversation per row and only videos")
    labels = np.where(batch.loss_weights > 0, batch.targets, -100)
    arrays = batch._asdict() | {"labels": labels}
    integers = ("tokens", "slot_index", "labels")
    tensors = {name: torch.from_numpy(arrays[name][0]).to(device) for name in TorchBatch._fields}
    return TorchBatch(**{name: x.long() if name in integers else x for name, x in tensors.items()})


class TorchOmniVinci(Merged):
    """The model. Freezes what the JAX side freezes: unused layers and Whisper's position embeddings."""

    def __init__(self, config: OmniVinciConfig):
        super().__init__(config)
        if config.vision_pools != ((1, 1, 1),) or config.audio_compression != "max":
            raise ValueError("the PyTorch side supports no frame pooling, and only max compression of sound")
        self.config = config
        tower = self.vision_tower.vision_tower
        for module in (tower.encoder.layers[-1], tower.post_layernorm, self.sound_tower.embed_positions):
            module.requires_grad_(False)

    def vision_tokens(self, tiles: Tensor) -> Tensor:
        """Encodes [tiles, P, P, 3] bytes to [tiles · tokens, D]."""
        tower, layers = self.vision_tower.vision_tower, self.mm_projector.layers
        x = tower.embeddings(tiles.permute(0, 3, 1, 2) / 127.5 - 1)
        for layer in tower.encoder.layers[:-1]:
            x = layer(x, None)
        # For a video frame, all scales of Dynamic-S2 are the same.
        x = torch.cat([x] * len(self.config.s2_scales), dim=-1)
        grid = self.config.tile_grid
        x = rearrange(x, "n (h i w j) c -> (n h w) (i j c)", h=grid, i=2, w=grid, j=2)
        return layers["4"](nn.functional.gelu(layers["2"](layers["1"](x))))

    def sound_tokens(self, windows: Tensor) -> Tensor:
        """Encodes log-mel [windows, F, M] to [windows · tokens, D]."""
        x = self.sound_tower(windows.transpose(1, 2)).last_hidden_state
        pairs = x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2))
        x, layers = torch.maximum(*pairs.unbind(2)).flatten(0, 1), self.sound_mm_projector.layers
        return layers["2"](nn.functional.gelu(layers["0"](x)))

    def fill_slots(self, batch: TorchBatch, vision: Tensor, audio: Tensor) -> Tensor:
        """Returns [rows, slots, D]: text embeddings, and media tokens with time embeddings in their slots."""
        vision = rotate(vision, batch.vision_times, frequencies(self.config.video_time))
        audio = rotate(audio, batch.audio_times, frequencies(self.config.sound_time))
        pool, media = torch.cat([vision, audio]), batch.slot_kind != TEXT
        index = batch.slot_index + len(vision) * (batch.slot_kind == AUDIO)
        x = self.llm.model.embed_tokens(batch.tokens)
        x[media] = pool[index[media]].to(x.dtype)
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Returns the hidden states after the final norm."""
        return self.llm.model(inputs_embeds=x, use_cache=False).last_hidden_state

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy over the labels."""
        logits = self.llm.lm_head(hidden).flatten(0, 1).float()
        return nn.functional.cross_entropy(logits, labels.flatten())

    def forward(self, batch: TorchBatch) -> Tensor:
        """Returns the loss of a group."""
        vision, audio = self.vision_tokens(batch.tiles), self.sound_tokens(batch.windows)
        return self.loss(self.decode(self.fill_slots(batch, vision, audio)), batch.labels)


def rotate(x: Tensor, times: Tensor, frequency: np.ndarray) -> Tensor:
    """Applies the Constrained Rotary Time Embedding (Equations 4 and 5) to the first channels."""
    turns = times.double()[:, None] * torch.from_numpy(frequency).to(times.device)
    angles, channels = 2 * torch.pi * turns, len(frequency)
    head = x[:, :channels]
    half = torch.stack([-head[:, 1::2], head[:, 0::2]], dim=-1).flatten(-2)
    return torch.cat([head * angles.cos().float() + half * angles.sin().float(), x[:, channels:]], dim=-1)
