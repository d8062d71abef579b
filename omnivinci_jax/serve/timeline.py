"""What the model sees of a media item, as JSON: frames at their times, the log-mel, temporal groups, tokens."""

import base64
import io

import matplotlib
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.sequence.batch import AUDIO, VISION
from omnivinci_jax.sequence.chat import Media
from omnivinci_jax.sequence.grouping import group_count
from omnivinci_jax.sequence.row import ImageSize, SoundSize, VideoSize, lay_out_media
from omnivinci_jax.serve.decoding import LimitedReader

_THUMBNAIL = 224  # pixels
_WIDEST_MEL = 4096  # columns


def describe_item(reader: LimitedReader, item: Media, tiled: bool) -> dict:
    """Returns what the model sees of an item; `tiled` as in `MediaReader.load_item`. Raises MediaError."""
    config = reader.reader.config
    size, tiles, windows = reader.load_item(item, tiled)
    row = lay_out_media(item, size, config)
    sound = size if isinstance(size, SoundSize) else size.sound if isinstance(size, VideoSize) else None
    seconds = 0.0 if isinstance(size, ImageSize) else size.seconds
    if isinstance(size, VideoSize) and sound:
        seconds = max(seconds, sound.seconds)
    times = size.frame_times if isinstance(size, VideoSize) else (0.0,) * isinstance(size, ImageSize)
    return {
        "kind": item.kind,
        "name": item.path,
        "seconds": seconds,
        "frames": [{"time": time, "jpeg": _jpeg(tile)} for time, tile in zip(times, tiles, strict=False)],
        "mel": _mel(windows, sound.seconds, seconds, config) if sound else None,
        "groups": _groups(size, seconds, config) if isinstance(size, VideoSize) and sound else [],
        "tokens": {
            "vision": int((row.slot_kind >= VISION).sum()),
            "audio": int((row.slot_kind == AUDIO).sum()),
        },
    }


def _groups(size: VideoSize, seconds: float, config: OmniVinciConfig) -> list[dict]:
    length = config.temporal_group_seconds
    if length is None:
        return [{"start": 0.0, "end": seconds}]
    count = len(size.group_ends) if size.group_ends else group_count(seconds, length)
    ends = [min((index + 1) * length, seconds) for index in range(count - 1)] + [seconds]
    return [{"start": index * length, "end": end} for index, end in enumerate(ends)]


def _jpeg(tile: UInt8[np.ndarray, "h w 3"]) -> str:
    image = Image.fromarray(tile)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _url(image, "jpeg")


def _mel(windows: Float32[np.ndarray, "n F M"], heard: float, seconds: float, config: OmniVinciConfig) -> str:
    """Draws `heard` seconds of sound, then silence up to `seconds`."""
    rate = config.sampling_rate / config.audio_hop_length
    mel = windows.reshape(-1, windows.shape[-1])[: max(1, round(heard * rate))]
    mel = np.pad(mel, ((0, max(0, round(seconds * rate) - len(mel))), (0, 0)), constant_values=mel.min())
    mel = mel[:: -(-len(mel) // _WIDEST_MEL)]
    scaled = (mel - mel.min()) / max(float(np.ptp(mel)), 1e-6)
    colours = matplotlib.colormaps["magma"](scaled.T[::-1])[..., :3]
    return _url(Image.fromarray((colours * 255).astype(np.uint8)), "png")


def _url(image: Image.Image, form: str) -> str:
    file = io.BytesIO()
    image.save(file, form)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
