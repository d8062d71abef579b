"""Speech-prompted samples: a share of a source's samples has its user texts spoken (paper, Figure 14)."""

import zlib
from dataclasses import dataclass, replace
from functools import cached_property

from omnivinci_jax.data.records import Entry, WrappedRecords
from omnivinci_jax.paths import AnyPath
from omnivinci_jax.sequence.chat import Conversation, Media, Message
from omnivinci_jax.settings import VoiceConfig
from omnivinci_jax.speech import Voice, make_voice, spoken_file


@dataclass(frozen=True)
class SpokenPrompts(WrappedRecords):
    """Replaces every user text by a sound, in a share of the records.

    The choice depends only on text and line; a larger share includes the records of a smaller one.
    """

    share: float
    voice: VoiceConfig
    folder: AnyPath

    def identity(self) -> tuple:
        """See `Records`."""
        return *self.records.identity(), self.share, self.voice

    def conversation(self, entry: Entry) -> Conversation:
        """See `Records`; raises UserError if the voice fails."""
        conversation = self.records.conversation(entry)
        texts = [item for message in conversation.messages for item in message.content if isinstance(item, str)]
        if zlib.crc32(f"{entry.line} {texts}".encode()) >= self.share * 2**32:
            return conversation
        messages = (self._spoken(message) if message.role == "user" else message for message in conversation.messages)
        return replace(conversation, messages=tuple(messages))

    def _spoken(self, message: Message) -> Message:
        content = (self._say(item) if isinstance(item, str) and item.strip() else item for item in message.content)
        return replace(message, content=tuple(content))

    def _say(self, text: str) -> Media:
        return Media("sound", str(spoken_file(self._voice, text.strip(), self.folder)))

    @cached_property
    def _voice(self) -> Voice:
        return make_voice(self.voice)
