"""A synthetic group of videos with sound that fills a given capacity, as input of a training step."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Int32

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.errors import ConfigError
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import TEXT, Batch, Capacity
from omnivinci_jax.sequence.chat import Media
from omnivinci_jax.sequence.row import Row, SoundSize, VideoSize, lay_out_media


def video_batch(config: OmniVinciConfig, capacity: Capacity, seed: int = 0) -> Batch:
    """Returns one group; each row is a conversation: a video with sound, then text up to the end of the row.

    Tiles and windows are divided evenly over the rows. Pixels, log-mel and text are random; the second half of the text
    is trained on.

    Raises:
        ConfigError: a row has fewer than two slots left for text after its video.
    """
    rng = np.random.default_rng(seed)
    frames, windows = capacity.tiles // capacity.rows, capacity.windows // capacity.rows
    side, audio = config.vision.image_size, config.audio
    packed = []
    for index in range(capacity.rows):
        tiles = rng.integers(0, 256, (frames, side, side, 3), np.uint8)
        mel = rng.normal(size=(windows, audio.window_frames, audio.num_mel_bins)).astype(np.float32)
        packed.append(PackedRow(index, 1, _row(config, capacity.slots, frames, windows, index, rng), tiles, mel))
    return jax.tree.map(lambda array: array[None], assemble(packed, config, capacity))


def _row(config: OmniVinciConfig, slots: int, frames: int, windows: int, index: int, rng: np.random.Generator) -> Row:
    seconds = windows * config.window_samples / config.sampling_rate
    times = tuple(float(time) for time in np.arange(frames) * seconds / frames)
    size = VideoSize(tuple(range(frames)), times, seconds, SoundSize(seconds, windows))
    video = lay_out_media(Media("video", f"{index}.mp4"), size, config)
    text = slots - len(video)
    if text < 2:
        raise ConfigError(f"{frames} frames and {windows} windows take {len(video)} of a row's {slots} slots")
    return with_text(video, rng.integers(0, config.text.vocab_size, text, np.int32))


def with_text(row: Row, tokens: Int32[np.ndarray, " n"]) -> Row:
    """Returns the row followed by text, whose second half is trained on."""
    text = len(tokens)
    return dataclasses.replace(
        row,
        tokens=np.append(row.tokens, tokens),
        trained=np.append(row.trained, np.arange(text) >= text // 2),
        slot_kind=np.append(row.slot_kind, np.full(text, TEXT, np.int8)),
        slot_index=np.append(row.slot_index, np.zeros(text, np.int32)),
    )
