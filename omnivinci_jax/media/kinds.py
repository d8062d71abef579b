"""The kind of a media file, by its content."""

from pathlib import Path
from typing import Literal

from PIL import Image

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg


def media_kind(path: str | Path) -> Literal["image", "video", "sound"]:
    """Tells whether a file is an image, a video (with or without sound) or a sound; raises MediaError otherwise."""
    ffmpeg.check_file(path)
    try:
        with Image.open(path) as image:
            # Previews in a camera's JPEG and pages of a TIFF are not frames.
            if getattr(image, "n_frames", 1) == 1 or image.format not in ("GIF", "PNG"):
                return "image"
    except Exception:  # Pillow raises many kinds; in any case it is not an image
        pass
    with ffmpeg.open_container(path) as container:
        if ffmpeg.first_video(container):
            return "video"
        if container.streams.audio:
            return "sound"
    raise MediaError(f"{path}: has neither video nor sound")
