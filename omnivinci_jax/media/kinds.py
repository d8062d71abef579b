"""The kind of a media file, by its content."""

from pathlib import Path
from typing import Literal

from omnivinci_jax.errors import MediaError
from omnivinci_jax.media import container as ffmpeg
from omnivinci_jax.media import stills


def media_kind(path: str | Path) -> Literal["image", "video", "sound"]:
    """Tells whether a file is an image, a video (with or without sound) or a sound; raises MediaError otherwise."""
    ffmpeg.check_file(path)
    try:
        with stills.open_by_pillow(path) as image:
            if image is not None:
                return "video" if stills.is_animated(image) else "image"
    except MediaError:  # Pillow knows the format, but not this file
        pass
    with ffmpeg.open_container(path) as container:
        if ffmpeg.default_video(container):
            return "image" if container.format.name.endswith("_pipe") else "video"
        if container.streams.audio:
            return "sound"
    raise MediaError(f"{path}: has neither video nor sound")
