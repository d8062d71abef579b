"""What all requests share: the engine's thread, the decoders, the voice, limits and metrics."""

import asyncio
from dataclasses import dataclass, field
from functools import partial

from omnivinci_jax.data.processor import MediaReader, is_tiled
from omnivinci_jax.generate.engine import Engine
from omnivinci_jax.generate.media import Loaded
from omnivinci_jax.generate.request import Prompt
from omnivinci_jax.sequence.chat import Conversation, Media
from omnivinci_jax.serve.content import Sources
from omnivinci_jax.serve.decoding import Decoders, LimitedReader, Limits
from omnivinci_jax.serve.engine_thread import DeadlinePassed, EngineThread
from omnivinci_jax.serve.metrics import Metrics
from omnivinci_jax.serve.timeline import describe_item
from omnivinci_jax.speech import Voice


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    rows: answers that run at once. queue: answers that may wait. timeout: seconds of a request.
    max_body: bytes of a request's body. workers: processes that decode media.
    """

    rows: int = 16
    queue: int = 64
    timeout: float = 600.0
    max_body: int = 64 * 2**20
    workers: int = 2
    sources: Sources = field(default_factory=Sources)
    limits: Limits = field(default_factory=Limits)


class Service:
    """Serves one engine, which nobody else may use from now on."""

    def __init__(self, engine: Engine, name: str, settings: Settings, voice: Voice | None = None):
        self.name, self.settings, self.voice = name, settings, voice
        self.processor = engine.processor
        self.engine = EngineThread(engine, rows=settings.rows, queue=settings.queue)
        self.metrics = Metrics(self.engine)
        reader = MediaReader(engine.processor.config, drop=engine.processor.drop)
        self._decoders = Decoders(LimitedReader(reader, settings.limits), settings.workers)

    def close(self) -> None:
        """Ends the thread and the workers."""
        self._decoders.close()
        self.engine.close()

    async def load(self, conversation: Conversation, deadline: float) -> dict[tuple[Media, bool], Loaded]:
        """Loads the media that are not in the engine's cache, in worker processes.

        Raises:
            MediaError: an item cannot be read, or passes a limit.
            DeadlinePassed: it takes too long.
        """
        tiled, cache, loaded = is_tiled(conversation), self.engine.engine.media, {}
        try:
            async with asyncio.timeout_at(deadline):
                for item in dict.fromkeys(conversation.media):
                    if not await asyncio.to_thread(cache.has, item, tiled):
                        loaded[item, tiled] = await self._decoders.call(LimitedReader.load_item, item, tiled)
        except TimeoutError:
            raise DeadlinePassed("the media take longer to read than this server allows") from None
        return loaded

    async def timeline(self, conversation: Conversation) -> dict:
        """Returns what the model sees of a conversation's media."""
        tiled = is_tiled(conversation)
        call = partial(self._decoders.call, describe_item)
        items = [await call(item, tiled) for item in conversation.media]
        ids, _ = self.processor.tokenizer.encode_conversation(conversation, generate=True)
        return {"items": items, "text_tokens": len(ids) - len(items)}

    def count_prompt(self, prompt: Prompt) -> None:
        """Counts the tokens of a prompt by modality."""
        text = len(prompt) - prompt.vision_tokens - prompt.audio_tokens
        for name, count in (("text", text), ("vision", prompt.vision_tokens), ("audio", prompt.audio_tokens)):
            self.metrics.prompt_tokens.labels(name).inc(count)
