"""Prints the peak memory (MB) that one answer adds, for a number of seconds and files; runs in a separate process.

python -m tests.generate.peak SECONDS FILE...
"""

import sys

from omnivinci_jax.config import Qwen2Config
from omnivinci_jax.media.kinds import media_kind
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from tests.generate.conftest import tiny_assistant
from tests.memory import peak_megabytes
from tests.tiny import tiny_config


def main(seconds: str, *files: str) -> None:
    text = Qwen2Config(**vars(tiny_config().text) | {"max_position_embeddings": 32_768})
    assistant = tiny_assistant(text=text, num_video_frames=128, max_sound_seconds=float(seconds))
    assistant.generate("Warm up.", max_new_tokens=2)
    before = peak_megabytes()
    media = tuple(Media(media_kind(file), file) for file in files)
    answer = assistant.generate(Conversation((Message("user", (*media, "What?")),)), max_new_tokens=4)
    print(peak_megabytes() - before, answer.prompt_tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
