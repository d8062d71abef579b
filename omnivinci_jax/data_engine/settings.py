"""Settings of the data engine, read from configs/data_engine.py with `--config.a.b=...` overrides."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from omnivinci_jax.errors import ConfigError, check_values
from omnivinci_jax.settings import VoiceConfig


@dataclass(frozen=True)
class ModelConfig:
    """A model behind a URL in OpenAI's form.

    url: base URL of the server, without /v1; model: name of the model.
    key_variable: environment variable with the API key; none is sent if it is not set.
    temperature, max_tokens: of its answers; extra: more fields of a request's body, such as a `response_format`.
    timeout: seconds of one try; retries: tries after the first; backoff: seconds before the second try, doubled for
        each later one.
    concurrency: requests at once; requests_per_minute, tokens_per_minute: 0 for no limit.
    prompt_price, answer_price: dollars per million tokens.
    """

    url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 1024
    extra: dict[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 16
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    prompt_price: float = 0.0
    answer_price: float = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on: all except where it is, and how fast and at which price it answers."""
        names = ("model", "temperature", "max_tokens", "extra")
        return {name: getattr(self, name) for name in names}

    def dollars(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Returns the price of so many tokens."""
        return (prompt_tokens * self.prompt_price + answer_tokens * self.answer_price) / 1e6


@dataclass(frozen=True)
class QualityConfig:
    """What a text must be to be kept; lengths are in words.

    language: code of ISO 639-1 ("en"), or "" for any.
    caption_words, question_words: shortest and longest.
    options: fewest and most options of a question with options.
    longest_option: how much longer than each other option the right one may be.
    same_question: share of common words at which two questions of a segment are near-duplicates.
    same_caption: share of common word triples at which two captions are near-duplicates.
    """

    language: str = "en"
    caption_words: tuple[int, int] = (8, 600)
    question_words: tuple[int, int] = (3, 80)
    options: tuple[int, int] = (2, 6)
    longest_option: float = 2.5
    same_question: float = 0.8
    same_caption: float = 0.8


@dataclass(frozen=True)
class EngineConfig:
    """The data engine (Section 3.2, Figure 4).

    vision, audio: caption clips from sight alone and from sound alone. corrector: corrects the captions of a segment
        against each other and joins them. questioner: writes questions with reasoning. judge: answers them without the
        media, and from one modality.
    prompts: folder with prompts of your own; a file that it lacks is the package's.
    clip_seconds, segment_seconds: lengths; cuts are at the nearest keyframes, since nothing is encoded again.
    send: how vision models get a clip: as frames, or as a video without sound.
    frames: of a clip; frame_side: their longer side in pixels.
    silence: dB below full scale under which a clip counts as silent; it is not captioned from its sound.
    questions: asked about each segment; 0 for captions alone.
    tries: how often the judge answers under each condition, with the options in another order each time; it knows the
        answer if it is right in all of them. 0: no judge.
    answers: whether the answer in the messages has the reasoning, as <think>…</think><answer>…</answer>.
    speech_share: share of the questions that `voice` speaks.
    budget: dollars that all runs into one folder may spend; 0 for no limit.
    rows: videos in work at once; threads: that decode media.
    examples: segments shown on the page of the report.
    frame_tokens, sound_tokens: of a frame and of a second of sound; --dry_run uses them.
    """

    vision: ModelConfig = field(default_factory=ModelConfig)
    audio: ModelConfig = field(default_factory=ModelConfig)
    corrector: ModelConfig = field(default_factory=ModelConfig)
    questioner: ModelConfig = field(default_factory=ModelConfig)
    judge: ModelConfig = field(default_factory=ModelConfig)
    prompts: str = ""
    clip_seconds: float = 20.0
    segment_seconds: float = 120.0
    send: Literal["frames", "video"] = "frames"
    frames: int = 8
    frame_side: int = 448
    silence: float = -60.0
    questions: int = 4
    tries: int = 2
    answers: Literal["reasoning", "plain"] = "reasoning"
    quality: QualityConfig = field(default_factory=QualityConfig)
    voice: VoiceConfig = field(default_factory=VoiceConfig)
    speech_share: float = 0.0
    budget: float = 0.0
    rows: int = 64
    threads: int = 4
    examples: int = 20
    frame_tokens: int = 256
    sound_tokens: float = 25.0

    def __post_init__(self):
        rules = (
            ("clip_seconds", self.clip_seconds > 0, "above 0"),
            ("segment_seconds", self.segment_seconds >= self.clip_seconds, "at least clip_seconds"),
            ("frames", self.frames >= 1, "1 or more"),
            ("frame_side", self.frame_side >= 16, "16 or more"),
            ("questions", self.questions >= 0, "0 or more"),
            ("tries", self.tries >= 0, "0 or more"),
            ("speech_share", 0 <= self.speech_share <= 1, "0 to 1"),
            ("rows", self.rows >= 1, "1 or more"),
            ("threads", self.threads >= 1, "1 or more"),
        )
        check_values(self, rules, "config.")
        for role, model in self.models.items():
            if not re.fullmatch(r"https?://[\w.\-\[\]:]+(/\S*)?", model.url):
                raise ConfigError(f"config.{role}.url is {model.url!r}: give the server's http://HOST:PORT")

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The models in use, by their role."""
        models = {"vision": self.vision, "audio": self.audio, "corrector": self.corrector}
        if self.questions:
            models["questioner"] = self.questioner
            if self.tries:
                models["judge"] = self.judge
        return models
