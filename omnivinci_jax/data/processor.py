"""Turns a conversation into model inputs: sizes of its media, its row, its tiles and its windows."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.shards import on_disk
from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import audio, decode, image, stills
from omnivinci_jax.media.frame_sampling import group_ends, sample_frames
from omnivinci_jax.paths import AnyPath, atomic_file, local_copy
from omnivinci_jax.sequence.chat import Conversation, Inline, Media, Message
from omnivinci_jax.sequence.row import ImageSize, MediaSize, Row, SoundSize, VideoSize, lay_out
from omnivinci_jax.sequence.tokenizer import Tokenizer

_SIZES = {kind.__name__: kind for kind in (ImageSize, SoundSize, VideoSize)}


@dataclass(frozen=True)
class MediaReader:
    """Reads media files for one model: their sizes, tiles and windows.

    drop: the stream to drop from every conversation (for blind baselines and Table 2). Without its frames, a video
        becomes a sound; media with no stream left are removed.
    cache: folder that caches tiles and windows by path, size, modification time and settings of their files.
    """

    config: OmniVinciConfig
    _: dataclasses.KW_ONLY
    drop: Literal["nothing", "sound", "vision"] = "nothing"
    cache: AnyPath | None = None

    def select(self, conversation: Conversation) -> Conversation:
        """Returns the conversation without the media that `drop` removes."""
        if self.drop == "nothing":
            return conversation
        messages = []
        for message in conversation.messages:
            kept = (self._keep(item) if isinstance(item, Media) else item for item in message.content)
            messages.append(Message(message.role, tuple(item for item in kept if item is not None)))
        return dataclasses.replace(conversation, messages=tuple(messages))

    def measure(self, conversation: Conversation, max_frames: int | None = None) -> list[MediaSize]:
        """Returns the sizes of a conversation's media, read from the files' headers; raises MediaError.

        Args:
            conversation: as returned by `select`.
            max_frames: limit on the frames of each video, below the model's.
        """
        tiled, sizes = is_tiled(conversation), []
        for item in conversation.media:
            with on_disk(item) as file:
                sizes.append(self._measure(file, tiled, max_frames))
        return sizes

    def load(
        self, conversation: Conversation, max_frames: int | None = None
    ) -> tuple[list[MediaSize], UInt8[np.ndarray, "tiles P P 3"], Float32[np.ndarray, "windows F M"]]:
        """Loads sizes, tiles and windows of a conversation's media, in order; raises MediaError."""
        tiled = is_tiled(conversation)
        side, audio_config = self.config.vision.image_size, self.config.audio
        sizes = []
        tiles = [np.zeros((0, side, side, 3), np.uint8)]
        windows = [np.zeros((0, audio_config.window_frames, audio_config.num_mel_bins), np.float32)]
        for item in conversation.media:
            size, item_tiles, item_windows = self.load_item(item, tiled, max_frames)
            sizes.append(size)
            tiles.append(item_tiles)
            windows.append(item_windows)
        return sizes, np.concatenate(tiles), np.concatenate(windows)

    def _keep(self, item: Media) -> Media | None:
        if self.drop == "sound":
            return None if item.kind == "sound" else item
        if item.kind != "video":
            return item if item.kind == "sound" else None
        with on_disk(item) as file:
            has_sound = not item.muted and _probe_video(*file_state(file.path), file.track).audio_seconds > 0
        return dataclasses.replace(item, kind="sound") if has_sound else None

    def _measure(self, item: Media, tiled: bool, max_frames: int | None) -> MediaSize:
        config = self.config
        if item.kind == "image":
            if not tiled:
                return ImageSize()
            width, height = stills.probe_image(item.path)
            return ImageSize(*image.dynamic_s2_grid(width, height, config.s2_scales, config.max_tiles))
        if item.kind == "sound":
            return self._sound_size(decode.probe_audio(item.path, item.track))
        info = _probe_video(*file_state(item.path), item.track)
        frames = min(config.num_video_frames, max_frames or config.num_video_frames)
        sampled = sample_frames(config.frame_sampling, info.frame_times, info.duration, config.fps, frames)
        has_sound = info.audio_seconds > 0 and self.drop != "sound" and not item.muted
        sound, ends = self._sound_size(info.audio_seconds) if has_sound else None, None
        if sound and sampled.rate is not None and config.temporal_group_seconds is not None:
            ends = group_ends(
                sampled.indices,
                frames=len(info.frame_times),
                rate=sampled.rate,
                group_seconds=config.temporal_group_seconds,
                sound_seconds=sound.seconds,
                mel_rate=config.sampling_rate // config.audio_hop_length,
            )
        return VideoSize(
            tuple(sampled.indices.tolist()), tuple(sampled.times.tolist()), sampled.seconds, sound, group_ends=ends
        )

    def _sound_size(self, seconds: float) -> SoundSize:
        seconds = min(seconds, self.config.max_sound_seconds)
        return SoundSize(seconds, self.config.sound_windows(seconds))

    def _load(self, item: Media, tiled: bool, max_frames: int | None) -> tuple[MediaSize, np.ndarray, np.ndarray]:
        config, size = self.config, self._measure(item, tiled, max_frames)
        side = config.vision.image_size
        tiles, windows = np.zeros((0, side, side, 3), np.uint8), self._windows(item, None)
        if isinstance(size, ImageSize):
            pixels = stills.read_image(item.path)
            if size.rows:
                tiles, _ = image.dynamic_s2_tiles(pixels, config.s2_scales, config.max_tiles)
            else:
                tiles = image.frame_tile(pixels, side)[None]
        elif isinstance(size, SoundSize):
            windows = self._windows(item, size)
        else:
            distinct, repeats = np.unique(size.frame_indices, return_counts=True)
            frames = decode.iterate_frames(item.path, distinct)
            tiles = np.repeat([image.frame_tile(frame, side) for frame in frames], repeats, axis=0)
            windows = self._windows(item, size.sound)
        return size, tiles, windows

    def _windows(self, item: Media, size: SoundSize | None) -> np.ndarray:
        config = self.config
        if size is None:
            return np.zeros((0, config.audio.window_frames, config.audio.num_mel_bins), np.float32)
        waveform = decode.read_waveform(item.path, config.sampling_rate, config.max_sound_seconds, item.track)
        # Decoders may return a few samples more or fewer than the header says; packs are planned by the header.
        samples = round(size.seconds * config.sampling_rate)
        waveform = waveform[:samples]
        waveform = np.pad(waveform, (0, config.padded_samples(size.seconds) - len(waveform)))
        return audio.mel_windows(
            waveform,
            window_frames=config.audio.window_frames,
            hop_length=config.audio_hop_length,
            n_fft=config.audio_n_fft,
            num_mel_bins=config.audio.num_mel_bins,
            sampling_rate=config.sampling_rate,
        )

    def load_item(
        self, item: Media, tiled: bool, max_frames: int | None = None
    ) -> tuple[MediaSize, UInt8[np.ndarray, "tiles P P 3"], Float32[np.ndarray, "windows F M"]]:
        """Loads size, tiles and windows of one item; `tiled` is `is_tiled` of its conversation. Raises MediaError."""
        if self.cache is None:
            with on_disk(item) as file:
                return self._load(file, tiled, max_frames)
        if isinstance(item.stored, Inline):
            file = (item.path,)  # unique to the content
        else:
            path, *state = file_state(str(local_copy(item.stored.shard)) if item.stored else item.path)
            file = (os.path.abspath(path), item.stored, *state)
        identity = (*file, item.kind, item.track, item.muted, tiled, max_frames, self.drop)
        key = hashlib.sha256(repr((identity, self._media_settings())).encode()).hexdigest()[:32]
        path = self.cache / key[:2] / f"{key}.npz"
        if path.exists():
            with path.open("rb") as file, np.load(file) as saved:
                size = json.loads(saved["size"].item())
                return _read_size(size), saved["tiles"], saved["windows"]
        with on_disk(item) as file:
            size, tiles, windows = self._load(file, tiled, max_frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part, open(part, "wb") as file:
            np.savez(file, size=json.dumps(_write_size(size)), tiles=tiles, windows=windows)
        return size, tiles, windows

    def _media_settings(self) -> tuple:
        """Returns the configuration fields that affect tiles, windows or sizes."""
        config = self.config
        return (
            config.s2_scales,
            config.max_tiles,
            config.frame_sampling,
            config.num_video_frames,
            config.fps,
            config.temporal_group_seconds,
            config.audio.window_frames,
            config.audio.num_mel_bins,
            config.audio_hop_length,
            config.audio_n_fft,
            config.audio_padding_seconds,
            config.sampling_rate,
            config.max_sound_seconds,
        )


@dataclass(frozen=True)
class Processor(MediaReader):
    """Turns conversations into rows, for one model."""

    tokenizer: Tokenizer

    def lay_out(self, conversation: Conversation, sizes: list[MediaSize], *, generate: bool = False) -> Row:
        """See `sequence.row.lay_out`."""
        return lay_out(conversation, sizes, self.config, self.tokenizer, generate=generate)


def file_state(path: str) -> tuple[str, int, int]:
    """Returns path, size and modification time; raises MediaError if there is no such file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have such a name
        raise MediaError(f"{path}: no such file; check the path") from None
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=64)  # consecutive conversations are often about the same file
def _probe_video(path: str, _size: int, _changed: int, track: int | None) -> decode.VideoInfo:
    return decode.probe_video(path, track)


def is_tiled(conversation: Conversation) -> bool:
    """Returns whether images are cut by Dynamic-S2: a single image is; each of several images is one tile."""
    return sum(item.kind == "image" for item in conversation.media) == 1


def _write_size(size: MediaSize) -> dict:
    return {"kind": type(size).__name__, **dataclasses.asdict(size)}


def _read_size(record: dict) -> MediaSize:
    kind = _SIZES[record.pop("kind")]
    if kind is VideoSize:
        sound = record.pop("sound")
        frames = {name: tuple(record.pop(name)) for name in ("frame_indices", "frame_times")}
        ends = record.pop("group_ends")
        frames["group_ends"] = ends and tuple(map(tuple, ends))
        return VideoSize(**frames, **record, sound=SoundSize(**sound) if sound else None)
    return kind(**record)
