"""Turns the reference's recorded cases (golden/cases) into batches.

A case holds token ids, normalised pixels and log-mel frames, so it bypasses our tokenizer, decoding and tiling. The
slot order, temporal groups, Dynamic-S2 grids and times come from `sequence/`, as in training. SETTINGS has what the
files lack: the configuration of each case, and the length of its sounds.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.config_json import read_json
from omnivinci_jax.sequence.assemble import PackedRow, assemble
from omnivinci_jax.sequence.batch import Batch, Capacity
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import ImageSize, MediaSize, SoundSize, VideoSize, lay_out
from omnivinci_jax.sequence.tokenizer import Tokenizer
from tests.parity.golden import CHECKPOINT, CONFIG, GOLDEN

IGNORED = -100
_UNITS = Capacity(1, 96, 12, 2, 2)  # capacities are multiples of these, so that cases share compiled programs


class Settings(NamedTuple):
    """What a case was recorded with: the configuration, and the length of each sound clip with its padding."""

    config: OmniVinciConfig = CONFIG
    sound_seconds: tuple[float, ...] = ()


def _video_with_sound(**changes: Any) -> Settings:
    return Settings(CONFIG.replace(audio_hop_length=2400, temporal_group_seconds=10.0, **changes), (30.0,))


def _with_time(**changes: Any) -> Settings:
    time = dataclasses.replace(CONFIG.video_time, **changes)
    return _video_with_sound(video_time=time, sound_time=time)


SETTINGS: dict[str, Settings] = {
    "a_text": Settings(),
    "b_image_none_block": Settings(),
    "b_image_s2_2x3": Settings(),
    "c_audio_2chunks": Settings(CONFIG.replace(audio_hop_length=3600), (45.0,)),
    "d_video_noaudio": Settings(),
    "e_video_audio": _video_with_sound(),
    "e_video_audio_labels": _video_with_sound(),
    "v_false_pixel_e": _with_time(scheme="axial_reversed", time_embed_type="pixel"),
    "v_noembed_e": _with_time(scheme="none"),
    "v_orig_mtct_longest_e": _with_time(scheme="longest"),
    "v_pool_multi_e": _video_with_sound(pool_sizes=((4, 1, 1), (2, 2, 2))),
    "v_true_pixel_e": _with_time(scheme="axial", time_embed_type="pixel"),
}
# A file without settings, or settings without a file, fail as one case.
CASES = sorted({*SETTINGS, *(path.stem for path in (GOLDEN / "cases").glob("*.npz"))})


class Case(NamedTuple):
    """A recorded case: its settings, its inputs and outputs, and the ids of the media tokens and of the newline."""

    name: str
    settings: Settings
    arrays: dict[str, np.ndarray]
    media_ids: dict[str, int]
    newline_id: int

    def json(self, key: str) -> Any:
        """The JSON recorded under `key`, or None."""
        return json.loads(self.arrays[key].tobytes()) if key in self.arrays else None


@dataclass(frozen=True)
class _Ids(Tokenizer):
    """Stands in for the tokenizer in `lay_out`; returns the ids of the case."""

    ids: np.ndarray
    trained: np.ndarray
    media_ids: dict[str, int]
    newline_id: int

    def encode_conversation(self, _conversation: Conversation, *, generate: bool) -> tuple[np.ndarray, np.ndarray]:
        return self.ids, self.trained


def read_case(name: str) -> Case:
    """Reads a case."""
    assert name in SETTINGS, f"{name}: no settings in tests/parity/cases.py"
    root = read_json(CHECKPOINT / "config.json")
    with np.load(GOLDEN / "cases" / f"{name}.npz") as saved:
        arrays = dict(saved)
    (newline,) = root["encoder_text_token_ids"]["\n"]
    return Case(name, SETTINGS[name], arrays, root["media_token_ids"], newline)


def case_batch(case: Case, free_slots: int = 0) -> Batch:
    """Lays out a case as one group of one row with `free_slots` extra slots."""
    config, ids = case.settings.config, case.arrays["in.input_ids"][0]
    labels = case.arrays["in.labels"][0] if "in.labels" in case.arrays else np.full(len(ids), IGNORED)
    media, kept = _media(case, ids)
    kinds, sizes = zip(*media, strict=True) if media else ((), ())
    content = tuple(Media(kind, f"{kind}.{index}") for index, kind in enumerate(kinds))
    stand_in = _Ids(ids[kept].astype(np.int32), (labels != IGNORED)[kept], case.media_ids, case.newline_id)
    row = lay_out(Conversation((Message("user", content),), case.name), list(sizes), config, stand_in)
    side = config.vision.image_size
    tiles, windows = _pixels(case).reshape(-1, side, side, 3), _windows(config, case)
    needed = Capacity(1, len(row) + free_slots, len(tiles), len(windows), len(media))
    capacity = Capacity(*(max(1, -(-n // unit)) * unit for n, unit in zip(needed, _UNITS, strict=True)))
    batch = assemble([PackedRow(0, 1, row, tiles, windows)], config, capacity)
    # Recorded pixels were normalised and are not integers: do not round them.
    pixels = np.zeros(batch.tiles.shape, np.float32)
    pixels[: len(tiles)] = tiles
    batch = batch._replace(tiles=pixels)
    return jax.tree.map(lambda array: array[None], batch)


def _videos(case: Case) -> list[dict[str, Any]]:
    return [video for videos in case.json("in.video_info.json") or [] for video in videos]


def _media(case: Case, ids: np.ndarray) -> tuple[list[tuple[str, MediaSize]], np.ndarray]:
    """Returns kind and size of each media item, and a mask of the ids to keep: a video's item includes its sound."""
    kinds = {token: kind for kind, token in case.media_ids.items()}
    blocks = iter((case.json("in.media_config.image.json") or {}).get("block_sizes", []))
    sounds = iter(_sounds(case))
    videos = iter(_videos(case))
    media, kept = [], np.ones(len(ids), bool)
    sound_of_video = None
    for index, token in enumerate(ids):
        kind = kinds.get(int(token))
        if kind == "image":
            media.append((kind, ImageSize(*(next(blocks, None) or (0, 0)))))
        elif kind == "sound":
            size = next(sounds)
            if index + 1 < len(ids) and kinds.get(int(ids[index + 1])) == "video":
                sound_of_video, kept[index] = size, False
            else:
                media.append((kind, size))
        elif kind == "video":
            info = next(videos)
            times = tuple(info["video_frame_times"])
            sound, sound_of_video = (sound_of_video if info["has_audio"] else None), None
            media.append((kind, VideoSize(tuple(range(len(times))), times, info["video_duration"], sound)))
    return media, kept


def _sounds(case: Case) -> list[SoundSize]:
    """Returns the sizes of the sounds, in order; their padded length must be that of the settings."""
    config, sizes = case.settings.config, []
    infos = [info for infos in case.json("in.audio_info.json") or [] for info in infos]
    for info, seconds in zip(infos, case.settings.sound_seconds, strict=True):
        windows = -(-info["new_audio_n_stft_frames"] // config.audio.window_frames)
        recorded, by_hop = info["new_audio_chunk_length"], windows * config.window_samples / config.sampling_rate
        assert recorded == seconds == by_hop, (
            f"{case.name}: {seconds} s in SETTINGS, {recorded} recorded, {by_hop} by hop"
        )
        sizes.append(SoundSize(info["audio_end_sample_sec"] - info["audio_start_sec"], windows))
    return sizes


def _pixels(case: Case) -> np.ndarray:
    """Returns all tiles and frames in order, converted from normalised channels-first to channels-last in 0 … 255."""
    keys = [key for key in case.arrays if key.startswith(("in.image.", "in.video."))]
    kinds = {kind: index for index, kind in enumerate(_order(case))}
    keys.sort(key=lambda key: (kinds.get(key.split(".")[1], 0), int(key.split(".")[2])))
    frames = [case.arrays[key].reshape(-1, *case.arrays[key].shape[-3:]) for key in keys]
    if not frames:
        return np.zeros(0, np.float32)
    pixels = (np.concatenate(frames).astype(np.float64) * 0.5 + 0.5) * 255
    return pixels.transpose(0, 2, 3, 1).astype(np.float32)


def _order(case: Case) -> list[str]:
    kinds = {token: kind for kind, token in case.media_ids.items()}
    return list(dict.fromkeys(kinds[int(token)] for token in case.arrays["in.input_ids"][0] if int(token) in kinds))


def _windows(config: OmniVinciConfig, case: Case) -> np.ndarray:
    """Returns the log-mel of all sounds, each padded with zeros to whole windows."""
    frames, windows = config.audio.window_frames, [np.zeros((0, config.audio.window_frames, config.audio.num_mel_bins))]
    for key in sorted(
        (key for key in case.arrays if key.startswith("in.sound.")), key=lambda key: int(key.split(".")[2])
    ):
        mel = case.arrays[key][0].T
        mel = np.pad(mel, ((0, -len(mel) % frames), (0, 0)))
        windows.append(mel.reshape(-1, frames, mel.shape[1]))
    return np.concatenate(windows).astype(np.float32)
