"""What a media file is, by its content."""

from pathlib import Path
from typing import Literal

from PIL import Image

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg


def media_kind(path: str | Path) -> Literal["image", "video", "sound"]:
    """Whether a file is a picture, a video (with sound or without) or a sound; raises MediaError for anything else."""
    ffmpeg.check_file(path)
    try:
        with Image.open(path) as image:
            # A camera's JPEG may hold a preview too, and a TIFF pages: these are no frames.
            if getattr(image, "n_frames", 1) == 1 or image.format not in ("GIF", "PNG"):
                return "image"
    except Exception:  # whatever Pillow's readers raise: then it is no picture
        pass
    with ffmpeg.opened(path) as container:
        if ffmpeg.first_video(container):
            return "video"
        if container.streams.audio:
            return "sound"
    raise MediaError(f"{path}: holds neither pictures nor sound")
