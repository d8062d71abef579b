"""`omnivinci inspect`: draws the model's view of a file: tiles, log-mel, temporal groups and times."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.data.processor import MediaReader
from omnivinci_jax.errors import UserError, printable
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.sequence.batch import AUDIO, TEXT, VISION
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.sequence.row import ImageSize, MediaSize, Row, VideoSize, lay_out_media

_MAX_TILES = 48
_SLOT_NAMES = ("newline", "sound", "picture")


def draw_file(path: Path, config: OmniVinciConfig, out: Path, track: int | None = None) -> dict:
    """Draws an image, a sound or a video as `config` presents it to the model; returns a summary.

    `track` is its sound track, counted from 1; None: the default one.

    Raises:
        UserError: the file is none of the three, or `out` cannot be written.
    """
    conversation = Conversation((Message("user", (Media(media_kind(path), str(path), track=track),)),))
    (size,), tiles, windows = MediaReader(config).load(conversation)
    row = lay_out_media(conversation.media[0], size, config)
    _draw(path, config, size, tiles, windows, row, out)
    kinds = np.minimum(row.slot_kind, VISION)
    summary = {"kind": type(size).__name__.removesuffix("Size").lower(), "tiles": len(tiles), "windows": len(windows)}
    if isinstance(size, VideoSize):
        summary["seconds"] = round(size.seconds, 3)
        summary["frame_times"] = [round(time, 3) for time in size.frame_times]
        summary["sound_seconds"] = round(size.sound.seconds, 3) if size.sound else 0
    elif isinstance(size, ImageSize):
        summary["grid"] = [size.rows, size.columns]
    else:
        summary["seconds"] = round(size.seconds, 3)
    tokens = {"vision_tokens": VISION, "audio_tokens": AUDIO, "newlines": TEXT}
    return summary | {name: int((kinds == kind).sum()) for name, kind in tokens.items()}


def _draw(
    path: Path, config: OmniVinciConfig, size: MediaSize, tiles: np.ndarray, windows: np.ndarray, row: Row, out: Path
) -> None:
    heights = [height for height, present in ((3.0, len(tiles)), (2.2, len(windows)), (0.9, True)) if present]
    figure = plt.figure(figsize=(12, sum(heights) + 1), layout="constrained")
    figure.suptitle(
        f"{printable(path.name)}: {len(row)} slots, {len(tiles)} tiles, {len(windows)} sound windows", parse_math=False
    )
    panels = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if len(tiles):
        _draw_tiles(next(panels), size, tiles)
    if len(windows):
        _draw_mel(next(panels), config, size, windows)
    _draw_slots(next(panels), row)
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise UserError(f"{out}: the picture cannot be written: {error.strerror}") from None
    finally:
        plt.close(figure)


def _draw_tiles(figure, size: MediaSize, tiles: np.ndarray) -> None:
    shown = np.linspace(0, len(tiles) - 1, min(len(tiles), _MAX_TILES)).round().astype(int)
    columns = min(len(shown), 16)
    axes = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).reshape(-1)
    for axis in axes:
        axis.axis("off")
    for axis, tile in zip(axes, shown, strict=False):
        axis.imshow(tiles[tile])
        title = f"{size.frame_times[tile]:.2f} s" if isinstance(size, VideoSize) else f"tile {tile}"
        axis.set_title(title, fontsize=7)


def _draw_mel(figure, config: OmniVinciConfig, size: MediaSize, windows: np.ndarray) -> None:
    axis = figure.subplots()
    mel = windows.reshape(-1, windows.shape[-1])
    seconds = len(mel) * config.audio_hop_length / config.sampling_rate
    axis.imshow(mel.T, origin="lower", aspect="auto", extent=(0, seconds, 0, mel.shape[1]), interpolation="nearest")
    for boundary in range(1, len(windows)):
        axis.axvline(boundary * seconds / len(windows), color="white", linewidth=2)
    if isinstance(size, VideoSize) and config.temporal_group_seconds:
        for boundary in np.arange(config.temporal_group_seconds, size.seconds, config.temporal_group_seconds):
            axis.axvline(boundary, color="white", linewidth=0.7, linestyle=":")
    axis.set(xlabel="seconds (dotted: temporal groups; solid: windows)", ylabel="mel bin")


def _draw_slots(figure, row: Row) -> None:
    axis = figure.subplots()
    kinds = np.minimum(row.slot_kind, VISION)[None]
    colours = ListedColormap(["lightgray", "tab:orange", "tab:blue"])
    axis.imshow(kinds, aspect="auto", cmap=colours, vmin=TEXT, vmax=VISION, interpolation="nearest")
    axis.set_yticks([])
    axis.set_xlabel(
        "slots in the decoder's order: "
        + ", ".join(f"{name} = {colour}" for name, colour in zip(_SLOT_NAMES, ("gray", "orange", "blue"), strict=True))
    )
