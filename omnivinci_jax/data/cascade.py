"""The cascade of Appendix D.3 (Figure 16a): what an external recogniser heard joins the prompt beside the sound."""

from collections.abc import Sequence
from dataclasses import replace

from omnivinci_jax.data.shards import on_disk
from omnivinci_jax.media import decode
from omnivinci_jax.sequence.chat import Conversation, Media, valid_text
from omnivinci_jax.speech.recognition import RATE, Recogniser


def heard(texts: Sequence[str]) -> str:
    """Returns the line, or the list, that says what a recogniser heard. The paper does not give its words."""
    if len(texts) == 1:
        return f"A speech recognizer heard: {valid_text(texts[0])}"
    lines = [f"{index}. {valid_text(text)}" for index, text in enumerate(texts, start=1)]
    return "\n".join(["A speech recognizer heard one of these:", *lines])


def with_transcripts(conversation: Conversation, recogniser: Recogniser, candidates: int = 1) -> Conversation:
    """Returns the conversation with what the recogniser heard after each sound, and each video with sound.

    Raises:
        ServerDown: see `Recogniser`.
        UserError: a sound cannot be read or recognised.
    """
    messages = []
    for message in conversation.messages:
        content = []
        for item in message.content:
            content.append(item)
            if isinstance(item, Media) and _has_sound(item):
                content.append(f"\n{heard(recognise(item, recogniser, candidates))}\n")
        messages.append(replace(message, content=tuple(content)))
    return replace(conversation, messages=tuple(messages))


def recognise(item: Media, recogniser: Recogniser, candidates: int = 1) -> list[str]:
    """Returns the texts that a recogniser hears in one item, at most `candidates`; raises as `with_transcripts`."""
    with on_disk(item) as file:
        return recogniser.transcribe(decode.read_waveform(file.path, RATE, track=file.track), candidates)


def _has_sound(item: Media) -> bool:
    if item.kind != "video" or item.muted:
        return item.kind == "sound"
    with on_disk(item) as file:
        return decode.probe_video(file.path, file.track).audio_seconds > 0
