"""One conversation as a row: text and media slots in temporal order, with the metadata that media tokens need.

A row is a pure function of a conversation, the sizes of its media and the model's configuration; no file is decoded.
All its indices start at the row's own first tile, window, frame group and clip; `assemble` offsets them for a group.
"""

import zlib
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int8, Int32

from omnivinci_jax.config import OmniVinciConfig, TimeEmbeddingConfig
from omnivinci_jax.sequence.axial import axial_angles
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION
from omnivinci_jax.sequence.chat import Conversation, Media
from omnivinci_jax.sequence.grouping import cut_groups, temporal_groups
from omnivinci_jax.sequence.harmonic import harmonic_angles
from omnivinci_jax.sequence.tokenizer import Tokenizer


@dataclass(frozen=True)
class ImageSize:
    """Grid of an image's largest scale; 0 x 0 if the image is one tile."""

    rows: int = 0
    columns: int = 0


@dataclass(frozen=True)
class SoundSize:
    """Length of a sound in seconds and in windows of the sound tower."""

    seconds: float
    windows: int


@dataclass(frozen=True)
class VideoSize:
    """Sampled frames of a video with their presentation times, its length in seconds, and its sound if any.

    `group_ends` are the temporal groups where the rule that sampled the frames fixes them: how many sampled frames and
    mel frames precede each group's end.
    """

    frame_indices: tuple[int, ...]
    frame_times: tuple[float, ...]
    seconds: float
    sound: SoundSize | None
    group_ends: tuple[tuple[int, int], ...] | None = None


MediaSize = ImageSize | SoundSize | VideoSize


@dataclass(frozen=True)
class Row:
    """One conversation laid out in L slots.

    `slot_kind` is TEXT, AUDIO or VISION + pool; `slot_index` is the token's index in that pool.
    `vision_times`, `vision_clip` and `vision_angles` have one array per pool; angles exist only for time schemes
    whose angles the host computes.
    """

    tokens: Int32[np.ndarray, " L"]
    trained: Bool[np.ndarray, " L"]
    slot_kind: Int8[np.ndarray, " L"]
    slot_index: Int32[np.ndarray, " L"]
    num_tiles: int
    num_windows: int
    s2_sources: Int32[np.ndarray, "outputs S"]
    s2_block: Int32[np.ndarray, "outputs 4"]
    frame_groups: tuple[Int32[np.ndarray, "_groups _time"], ...]
    vision_times: tuple[Float32[np.ndarray, " _tokens"], ...]
    vision_clip: tuple[Int32[np.ndarray, " _tokens"], ...]
    audio_times: Float32[np.ndarray, " A"]
    audio_clip: Int32[np.ndarray, " A"]
    clip_source: tuple[int, ...]
    vision_angles: tuple[Float32[np.ndarray, "_tokens C"], ...] | None
    audio_angles: Float32[np.ndarray, "A _C"] | None

    def __len__(self) -> int:
        return len(self.tokens)


def lay_out(
    conversation: Conversation,
    sizes: list[MediaSize],
    config: OmniVinciConfig,
    tokenizer: Tokenizer,
    *,
    generate: bool = False,
) -> Row:
    """Lays out a conversation; `sizes` match `conversation.media`. `generate` opens the assistant's next turn."""
    ids, trained = tokenizer.encode_conversation(conversation, generate=generate)
    builder = _MediaBuilder(config, tokenizer.newline_id)
    streams = [builder.add(item, size) for item, size in zip(conversation.media, sizes, strict=True)]
    (placeholders,) = np.nonzero(np.isin(ids, list(tokenizer.media_ids.values())))
    pieces, start = [], 0
    for index, stream in zip(placeholders, streams, strict=True):
        pieces += [_text(ids[start:index], trained[start:index]), stream]
        start = index + 1
    pieces.append(_text(ids[start:], trained[start:]))
    return Row(**_join(pieces)._asdict(), **builder.arrays())


def lay_out_media(item: Media, size: MediaSize, config: OmniVinciConfig) -> Row:
    """Lays out one media item as a row without text; newlines have the id 0."""
    builder = _MediaBuilder(config, newline_id=0)
    return Row(**builder.add(item, size)._asdict(), **builder.arrays())


class _Slots(NamedTuple):
    """A span of slots: token ids, whether trained, slot kinds, slot indices."""

    tokens: np.ndarray
    trained: np.ndarray
    slot_kind: np.ndarray
    slot_index: np.ndarray


def _text(ids: np.ndarray, trained: np.ndarray) -> _Slots:
    return _Slots(ids, trained, np.full(len(ids), TEXT, np.int8), np.zeros(len(ids), np.int32))


def _media(kind: int, indices: np.ndarray) -> _Slots:
    zeros = np.zeros(len(indices), np.int32)
    return _Slots(zeros, zeros.astype(bool), np.full(len(indices), kind, np.int8), indices.astype(np.int32))


def _join(spans: list[_Slots]) -> _Slots:
    return _Slots(*(np.concatenate(column) for column in zip(*spans, strict=True)))


def _cut(slots: _Slots, span: range) -> _Slots:
    return _Slots(*(column[span.start : span.stop] for column in slots))


@dataclass
class _PoolTokens:
    """Collects the tokens of one pool (a vision pool, or the audio tokens); `time` is the modality's time embedding."""

    time: TimeEmbeddingConfig
    modality: Literal["video", "sound"]
    times: list[np.ndarray] = field(default_factory=list)
    clip: list[np.ndarray] = field(default_factory=list)
    angles: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def add(self, times: Float64[np.ndarray, "frames tokens"], clip: int) -> np.ndarray:
        """Appends the tokens of a clip's frames (a sound is one frame) and returns their indices."""
        if self.time.harmonic:
            self.angles.append(harmonic_angles(times.reshape(-1), self.time))
        elif self.time.axial:
            frame, token = (axis.reshape(-1) for axis in np.indices(times.shape))
            frames, tokens = times.shape
            angles = axial_angles(frame, token, frames, tokens, times.reshape(-1), self.time, self.modality)
            self.angles.append(angles)
        times = times.reshape(-1)
        self.times.append(times.astype(np.float32))
        self.clip.append(np.full(len(times), clip, np.int32))
        self.count += len(times)
        return np.arange(self.count - len(times), self.count)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the times, clips and angles of all tokens."""
        times = np.concatenate([np.zeros(0, np.float32), *self.times])
        angles = np.concatenate([np.zeros((0, self.time.channels), np.float32), *self.angles])
        return times, np.concatenate([np.zeros(0, np.int32), *self.clip]), angles


class _MediaBuilder:
    """Collects the media of one conversation and returns each item's slots."""

    def __init__(self, config: OmniVinciConfig, newline_id: int):
        self.config = config
        self.newline = _text(np.array([newline_id], np.int32), np.array([False]))
        self.num_tiles = self.num_windows = 0
        self.s2_sources, self.s2_block = [], []
        self.frame_groups = [[] for _ in config.vision_pools]
        self.vision = [_PoolTokens(config.video_time, "video") for _ in config.vision_pools]
        self.audio = _PoolTokens(config.sound_time, "sound")
        self.clip_source = []

    def add(self, item: Media, size: MediaSize) -> _Slots:
        if isinstance(size, ImageSize):
            return self._add_image(size)
        if isinstance(size, SoundSize):
            return _media(AUDIO, self._add_sound(size))
        return self._add_video(item, size)

    def arrays(self) -> dict:
        """Returns the media fields of Row."""
        scales = sum(side * side for side in self.config.s2_sides) + 1
        vision_times, vision_clip, vision_angles = zip(*(pool.arrays() for pool in self.vision), strict=True)
        audio_times, audio_clip, audio_angles = self.audio.arrays()
        return dict(
            num_tiles=self.num_tiles,
            num_windows=self.num_windows,
            s2_sources=np.array(self.s2_sources, np.int32).reshape(-1, scales),
            s2_block=np.array(self.s2_block, np.int32).reshape(-1, 4),
            frame_groups=tuple(
                np.array(groups, np.int32).reshape(-1, pool[0])
                for groups, pool in zip(self.frame_groups, self.config.vision_pools, strict=True)
            ),
            vision_times=vision_times,
            vision_clip=vision_clip,
            audio_times=audio_times,
            audio_clip=audio_clip,
            clip_source=tuple(self.clip_source),
            vision_angles=vision_angles if self.config.video_time.host_angles else None,
            audio_angles=audio_angles if self.config.sound_time.host_angles else None,
        )

    def _add_image(self, size: ImageSize) -> _Slots:
        """Returns the slots of an image: its tiles merged back into one map, read row by row, then a newline."""
        side, first_output = self.config.tile_grid, len(self.s2_block)
        if size.rows:
            self._add_grid(size.rows, size.columns)
        else:
            self._add_single_tiles(1)
        rows, columns = max(size.rows, 1), max(size.columns, 1)
        outputs = range(first_output, first_output + rows * columns)
        self.frame_groups[0] += [[output] for output in outputs]
        indices = self.vision[0].add(np.zeros((rows * columns, side * side)), clip=0)
        merged = indices.reshape(rows, columns, side, side).transpose(0, 2, 1, 3)
        return _join([_media(VISION, merged.reshape(-1)), self.newline])

    def _add_grid(self, rows: int, columns: int) -> None:
        """Adds the tiles of all scales of a Dynamic-S2 image, ordered as in `dynamic_s2_tiles`; one output per cell."""
        sources, base = [], self.num_tiles
        for side in self.config.s2_sides:
            sources += range(base, base + side * side)
            base += side * side
        for row in range(rows):
            for column in range(columns):
                self.s2_sources.append([*sources, base + row * columns + column])
                self.s2_block.append((row, rows, column, columns))
        self.num_tiles = base + rows * columns

    def _add_single_tiles(self, count: int) -> list[int]:
        """Adds tiles that serve as their own source at every scale; returns the indices of their output tiles."""
        scales = sum(side * side for side in self.config.s2_sides) + 1
        first_output = len(self.s2_block)
        self.s2_sources += [[tile] * scales for tile in range(self.num_tiles, self.num_tiles + count)]
        self.s2_block += [(0, 0, 0, 0)] * count
        self.num_tiles += count
        return list(range(first_output, first_output + count))

    def _add_sound(self, size: SoundSize) -> np.ndarray:
        """Returns indices of a sound's tokens, padding included; token k of n is at second (k + 1/2) * length / n."""
        config = self.config
        count = size.windows * config.window_tokens
        length = config.padded_samples(size.seconds) / config.sampling_rate
        times = (np.arange(count) + 0.5) * length / count
        self.num_windows += size.windows
        return self.audio.add(times[None], clip=0)

    def _add_video(self, item: Media, size: VideoSize) -> _Slots:
        if not size.sound:
            return self._add_frames(size, clip=0)
        # A hash that is the same in every process; never 0, which means "no clip".
        self.clip_source.append(zlib.crc32(item.path.encode(errors="surrogateescape")) % (2**31 - 1) + 1)
        clip = len(self.clip_source)
        vision, audio = self._add_frames(size, clip), _media(AUDIO, self._add_sound(size.sound))
        padded = self.config.padded_samples(size.sound.seconds)
        tokens = dict(num_vision_tokens=len(vision.tokens), num_audio_tokens=len(audio.tokens))
        mel_frames = padded // self.config.audio_hop_length
        if size.group_ends is None:
            groups = temporal_groups(
                np.array(size.frame_times),
                seconds=max(size.seconds, size.sound.seconds),
                mel_frames=mel_frames,
                window_seconds=padded / self.config.sampling_rate,
                group_seconds=self.config.temporal_group_seconds,
                **tokens,
            )
        else:
            groups = cut_groups(size.group_ends, len(size.frame_times), mel_frames, **tokens)
        # Padding past the last group has no slots, and OmniAlignNet ignores it.
        self.audio.clip[-1][: groups[-1][1].stop] = clip
        spans = []
        for vision_part, audio_part in groups:
            spans += [_cut(vision, vision_part), self.newline, _cut(audio, audio_part), self.newline]
        return _join(spans)

    def _add_frames(self, size: VideoSize, clip: int) -> _Slots:
        """Returns slots of a video's frames: each pool's frame groups, and a newline after each of several pools."""
        outputs, times = self._add_single_tiles(len(size.frame_times)), np.array(size.frame_times)
        spans = []
        for pool_size in self.config.pool_sizes:
            pool, length = self.config.vision_pools.index(pool_size), pool_size[0]
            groups = [outputs[i : i + length] for i in range(0, len(outputs), length)]
            self.frame_groups[pool] += [group + [-1] * (length - len(group)) for group in groups]
            # The time of an incomplete last group is the mean over its frames.
            group_times = [times[i : i + length].mean() for i in range(0, len(times), length)]
            tokens = self.config.pool_tokens(pool)
            indices = self.vision[pool].add(np.repeat(np.array(group_times)[:, None], tokens, axis=1), clip)
            spans += [_media(VISION + pool, indices), self.newline]
        return _join(spans if len(self.config.pool_sizes) > 1 else spans[:1])
