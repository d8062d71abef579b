"""A small batch with every modality."""

import jax
import numpy as np

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.sequence.assemble import empty_group
from omnivinci_jax.sequence.batch import AUDIO, VISION, Batch, Capacity


def random_batch(config: OmniVinciConfig) -> Batch:
    """Returns a row of text with a frame and a sound."""
    random = np.random.default_rng(0)
    group = empty_group(config, Capacity(rows=1, slots=12, tiles=1, windows=1, clips=1))
    group.tokens[:] = random.integers(0, 500, group.tokens.shape)
    group.slot_kind[0, 3], group.slot_kind[0, 5:8] = VISION, AUDIO
    group.slot_index[0, 5:8] = range(3)
    group.segment_ids[:], group.positions[:] = 1, range(12)
    group.tiles[:] = random.integers(0, 256, group.tiles.shape)
    group.windows[:] = random.normal(size=group.windows.shape)
    group.frame_groups[0][:] = 0
    group.vision_clip[:] = group.audio_clip[:] = 1
    return jax.tree.map(lambda x: x[None], group)
