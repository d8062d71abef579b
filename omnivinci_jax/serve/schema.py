"""The bodies of requests, in OpenAI's form. Fields that this server does not support are refused, not ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from omnivinci_jax.generate.request import Sampling


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Url(_Body):
    """The address of a media file; `detail` changes nothing, since the model has one resolution."""

    url: str
    detail: str | None = None


class SoundData(_Body):
    """A sound file as base64, and its format, such as wav."""

    data: str
    format: str


class TextPart(_Body):
    """A text."""

    type: Literal["text"]
    text: str


class ImagePart(_Body):
    """An image."""

    type: Literal["image_url"]
    image_url: Url


class AudioPart(_Body):
    """A sound, by address."""

    type: Literal["audio_url"]
    audio_url: Url


class VideoPart(_Body):
    """A video."""

    type: Literal["video_url"]
    video_url: Url


class InputAudioPart(_Body):
    """A sound, as base64."""

    type: Literal["input_audio"]
    input_audio: SoundData


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart | InputAudioPart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """One turn; clients send answers back with fields of their own, which are not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class MediaSettings(_Body):
    """How media are read: whether a video's own sound is heard."""

    use_audio_in_video: bool = True


class _Conversation(_Body):
    messages: list[ChatMessage] = Field(min_length=1)
    mm_processor_kwargs: MediaSettings = MediaSettings()


class TimelineBody(_Conversation):
    """The body of /v1/timeline."""


class StreamOptions(_Body):
    """What a stream has beside the answer."""

    include_usage: bool = False


class Speech(_Body):
    """The form of a spoken answer; the server has one voice."""

    format: Literal["wav", "flac", "mp3", "pcm16"] = "wav"
    voice: str | None = None


class ChatBody(_Conversation):
    """The body of /v1/chat/completions."""

    model: str | None = None
    n: int = Field(default=1, ge=1, le=16)
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    modalities: list[Literal["text", "audio"]] = ["text"]
    audio: Speech | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def sampling(self, random_seed: int) -> Sampling:
        """Returns the sampling parameters; those that are not given are Sampling's, but for the seed.

        Raises:
            ConfigError: a value is out of range.
        """
        given = {
            "seed": random_seed if self.seed is None else self.seed,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "max_new_tokens": self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
        }
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(stop=stop, **{name: value for name, value in given.items() if value is not None})
