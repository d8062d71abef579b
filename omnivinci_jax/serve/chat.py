"""Answers of the engine as OpenAI's objects: whole, or as server-sent events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnivinci_jax.errors import UserError
from omnivinci_jax.generate.request import Prompt, Sampling
from omnivinci_jax.sequence.chat import Conversation
from omnivinci_jax.serve.engine_thread import DeadlinePassed, Delta, EngineFailed
from omnivinci_jax.serve.schema import ChatBody
from omnivinci_jax.serve.service import Service
from omnivinci_jax.serve.voice import Speaker, encode_sound
from omnivinci_jax.speech import Voice

_FINISH = {"end": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class Chat:
    """One request for answers; `deadline` is by the loop's clock."""

    service: Service
    body: ChatBody
    conversation: Conversation
    sampling: Sampling
    deadline: float

    @property
    def voice(self) -> Voice | None:
        """The voice, if the answer is to be spoken."""
        return self.service.voice if "audio" in self.body.modalities else None

    async def whole(self) -> dict:
        """Returns the complete answers as a chat.completion."""
        texts, finish = [""] * self.body.n, [""] * self.body.n
        logprobs, prompt, count = [[] for _ in texts], None, 0
        async with aclosing(self._events()) as events:
            async for event in events:
                if isinstance(event, Prompt):
                    prompt = event
                    continue
                texts[event.answer] += event.text
                logprobs[event.answer] += self._logprobs(event)
                count += len(event.tokens)
                finish[event.answer] = _FINISH.get(event.finish or "", "")
        choices = []
        for index, text in enumerate(texts):
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if self.voice:
                message["audio"] = await self._spoken(text)
            content = {"content": logprobs[index]} if self.body.logprobs else None
            choices.append({"index": index, "message": message, "finish_reason": finish[index], "logprobs": content})
        return self._object("chat.completion") | {"choices": choices, "usage": _usage(prompt, count)}

    async def streamed(self) -> AsyncGenerator[str, None]:
        """Yields the answers as server-sent events; raises errors of the prompt, and sends later ones as an event."""
        head, prompt, count = self._object("chat.completion.chunk"), None, 0
        include_usage = bool(self.body.stream_options and self.body.stream_options.include_usage)

        def chunk(index: int, delta: dict, finish: str | None = None, logprobs: list | None = None) -> str:
            content = {"content": logprobs} if logprobs is not None and self.body.logprobs else None
            choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": content}
            return _event(head | {"choices": [choice]} | ({"usage": None} if include_usage else {}))

        speakers = [Speaker(self.voice) for _ in range(self.body.n)] if self.voice else []
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    if isinstance(event, Prompt):
                        prompt = event
                        for index in range(self.body.n):
                            yield chunk(index, {"role": "assistant", "content": ""})
                        continue
                    count += len(event.tokens)
                    if event.text or event.tokens:
                        yield chunk(event.answer, {"content": event.text}, None, self._logprobs(event))
                    if speakers:
                        speaker = speakers[event.answer]
                        speaker.add(event.text)
                        for sound in speaker.ready():
                            yield chunk(event.answer, self._sound(sound))
                        if event.finish:
                            speaker.end()
                            async for sound in speaker.rest():
                                yield chunk(event.answer, self._sound(sound))
                    if event.finish:
                        yield chunk(event.answer, {}, _FINISH[event.finish])
            if include_usage:
                yield _event(head | {"choices": [], "usage": _usage(prompt, count)})
        except (UserError, EngineFailed, DeadlinePassed) as error:
            if prompt is None:
                raise
            yield _event({"error": {"message": str(error), "type": "server_error"}})
        finally:
            for speaker in speakers:
                speaker.end()
        yield "data: [DONE]\n\n"

    async def _events(self) -> AsyncGenerator[Prompt | Delta, None]:
        """Yields the engine's events and counts them; raises QueueFull if there is no room."""
        service, began, finished = self.service, time.monotonic(), False
        service.engine.reserve(self.body.n)
        try:
            loaded = await service.load(self.conversation, self.deadline)
            answer = service.engine.answer(self.conversation, self.sampling, self.body.n, loaded, self.deadline)
            async with aclosing(answer) as events:
                first = True
                async for event in events:
                    if isinstance(event, Prompt):
                        service.count_prompt(event)
                    else:
                        service.metrics.answer_tokens.inc(len(event.tokens))
                        if first:
                            service.metrics.first_token.observe(time.monotonic() - began)
                        first = False
                    yield event
            finished = True
        except (asyncio.CancelledError, GeneratorExit):
            service.metrics.cancelled.inc()
            raise
        finally:
            service.engine.release(self.body.n, time.monotonic() - began if finished else None)

    def _logprobs(self, event: Delta) -> list[dict]:
        tokenizer, entries = self.service.processor.tokenizer, []
        for token, logprob in zip(event.tokens, event.logprobs, strict=True):
            text = tokenizer.decode([token])
            entries.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
        return entries

    async def _spoken(self, text: str) -> dict:
        assert self.voice
        speaker = Speaker(self.voice)
        speaker.add(text)
        speaker.end()
        sounds = [np.zeros(0, np.float32)] + [sound async for sound in speaker.rest()]
        form = self.body.audio.format if self.body.audio else "wav"
        data = await asyncio.to_thread(encode_sound, np.concatenate(sounds), form)
        return {"id": f"audio-{secrets.token_hex(8)}", "data": data, "transcript": text, "expires_at": int(time.time())}

    def _sound(self, sound: np.ndarray) -> dict:
        return {"audio": {"data": encode_sound(sound, "pcm16")}}

    def _object(self, name: str) -> dict:
        identity = f"chatcmpl-{secrets.token_hex(12)}"
        return {"id": identity, "object": name, "created": int(time.time()), "model": self.service.name}


def _usage(prompt: Prompt | None, answer: int) -> dict:
    """Returns the tokens of prompt and answers; those of the prompt also by modality."""
    assert prompt
    total, vision, audio = len(prompt), prompt.vision_tokens, prompt.audio_tokens
    details = {"text_tokens": total - vision - audio, "vision_tokens": vision, "audio_tokens": audio}
    return {
        "prompt_tokens": total,
        "completion_tokens": answer,
        "total_tokens": total + answer,
        "prompt_tokens_details": details,
    }


def _event(data: dict) -> str:
    return f"data: {json.dumps(data)}\n\n"
