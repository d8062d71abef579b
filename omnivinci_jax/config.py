"""Configuration of every part of the model, as frozen dataclasses.

The defaults are the published 9B model. `to_json` and `from_json` (config_json.py) convert to and from the published
config.json; fields use the published names where they exist.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from omnivinci_jax.errors import ConfigError

TIME_SCHEMES = (
    "none", "learned", "rote", "crte", "longest", "axial", "axial_reversed", "harmonic_shortest", "harmonic_longest",
)  # fmt: skip
FRAME_SAMPLINGS = ("uniform", "released", "port")
AUDIO_COMPRESSIONS = ("none", "conv", "average", "max")


@dataclass(frozen=True)
class SiglipConfig:
    """Vision tower: SigLIP so400m at 448 px, patch 14, without its pooling head."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        _check_multiple("vision_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_multiple("vision_config.image_size", self.image_size, "patch_size", self.patch_size)
        if self.num_hidden_layers < 2:
            raise ConfigError(
                f"vision_config.num_hidden_layers is {self.num_hidden_layers}: must be at least 2, because the "
                "features are the output of the second-to-last layer"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class AFWhisperConfig:
    """Sound tower: AF-Whisper, with the architecture of the Qwen2-Audio encoder."""

    d_model: int = 1280
    encoder_ffn_dim: int = 5120
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    num_mel_bins: int = 128
    max_source_positions: int = 1500

    def __post_init__(self):
        _check_multiple("audio_config.d_model", self.d_model, "encoder_attention_heads", self.encoder_attention_heads)
        _check_multiple("audio_config.max_source_positions", self.max_source_positions, "the pooling of", 2)

    @property
    def window_frames(self) -> int:
        """Mel frames in one window (3000 at full size); the second convolution halves them."""
        return 2 * self.max_source_positions


@dataclass(frozen=True)
class Qwen2Config:
    """Decoder: Qwen2.5, or one of the Llama family.

    qkv_bias: whether q, k and v have biases, as in Qwen2.5; Llama's have none.
    """

    vocab_size: int = 151_661
    hidden_size: int = 3584
    intermediate_size: int = 18_944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    qkv_bias: bool = True

    def __post_init__(self):
        _check_multiple("text_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_multiple(
            "text_config.num_attention_heads",
            self.num_attention_heads,
            "num_key_value_heads",
            self.num_key_value_heads,
        )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """Embedding rows in memory, a multiple of 128: no mesh divides 151,661 = 43 x 3527."""
        return -(-self.vocab_size // 128) * 128


@dataclass(frozen=True)
class TimeEmbeddingConfig:
    """How absolute time enters a vision or audio token (Section 2.1; the schemes of Table 1 and of released configs).

    scheme: `crte` is Equation (4) (released name: period_fix "shortest" or "MTCT"); `longest`, `axial` and
        `axial_reversed` are the released period_fix "longest", "True" and "False"; `harmonic_shortest` and
        `harmonic_longest` are "shortest" and "longest" of the successor, Audio-Visual Flamingo; `rote`, `learned` and
        `none` are the other arms of Table 1.
    max_time: T_max in seconds, or None for an axial or harmonic scheme without a horizon.
    trope_dim: rotary width; half as many channels rotate, as in the released code (twice as many in axial schemes).
    theta: frequency scaling of Equation (4); 5 in the released code.
    time_embed_type: `pixel` or `lang`, the frequencies of the axial schemes.
    pair_angles: one angle for both channels of a plane (the paper's text) instead of one per channel (its equation).
    """

    scheme: Literal[
        "none", "learned", "rote", "crte", "longest", "axial", "axial_reversed", "harmonic_shortest", "harmonic_longest"
    ] = "crte"
    max_time: float | None = 3600.0
    trope_dim: int = 128
    theta: float = 5.0
    time_embed_type: Literal["pixel", "lang"] = "pixel"
    pair_angles: bool = False

    def __post_init__(self):
        one_of("time_embedding.scheme", self.scheme, TIME_SCHEMES)
        one_of("time_embedding.time_embed_type", self.time_embed_type, ("pixel", "lang"))
        if self.scheme in ("crte", "longest", "learned") and not (self.max_time and self.max_time > 0):
            raise ConfigError(f"time_embedding.max_time is {self.max_time}: scheme {self.scheme!r} needs a value > 0")
        if self.trope_dim % 4:
            raise ConfigError(f"time_embedding.trope_dim is {self.trope_dim}: it must be a multiple of 4")

    @property
    def axial(self) -> bool:
        """Whether angles also depend on the token's position (sequence/axial.py)."""
        return self.scheme in ("axial", "axial_reversed")

    @property
    def harmonic(self) -> bool:
        """Whether angles also depend on the clip's other times (sequence/harmonic.py)."""
        return self.scheme in ("harmonic_shortest", "harmonic_longest")

    @property
    def host_angles(self) -> bool:
        """Whether the host computes the angles, which then are part of the batch."""
        return self.axial or self.harmonic

    @property
    def channels(self) -> int:
        """C of Equation (4): number of leading channels to rotate, over both axes for an axial scheme."""
        return 2 * self.trope_dim if self.axial else self.trope_dim // 2


@dataclass(frozen=True)
class OmniAlignConfig:
    """OmniAlignNet (Section 2.1, Equation 1). The paper has no temperature; a learned scale is an option."""

    num_layers: int = 3
    num_heads: int = 28
    learned_scale: bool = False


@dataclass(frozen=True)
class OmniVinciConfig:
    """The whole model.

    s2_scales: side lengths of the Dynamic-S2 scales in pixels; the first is the tile.
    max_tiles: largest number of tiles of the largest scale.
    pool_sizes: (time, height, width) of each pool of a video's tokens; pools are applied in parallel.
    frame_sampling: which frames of a video the model sees (media/frame_sampling.py): `uniform`, `fps` frames per second
        and at most `num_video_frames`, or the `num_video_frames` frames that the `released` code or the Transformers
        `port` takes, with their temporal groups.
    num_video_frames, fps: see `frame_sampling`; an infinite `fps` always takes `num_video_frames` (published configs
        write null or 0).
    audio_compression: how the audio tokens are halved before the projector (Table 18).
    audio_hop_length, audio_n_fft: of the log-mel spectrogram, in samples at `sampling_rate`.
    audio_padding_seconds: sounds are padded with silence to a multiple of this length before the log-mel, then with
        zero frames to whole windows. The released processor pads to 30 s at every hop; None pads to whole windows.
    max_sound_seconds: longer sounds are cut at this length (the published demo reads one hour).
    temporal_group_seconds: T_G of Temporal Embedding Grouping; None puts all vision tokens before all audio tokens.
    """

    text: Qwen2Config = field(default_factory=Qwen2Config)
    vision: SiglipConfig = field(default_factory=SiglipConfig)
    audio: AFWhisperConfig = field(default_factory=AFWhisperConfig)
    s2_scales: tuple[int, ...] = (448, 896, 1344)
    max_tiles: int = 12
    pool_sizes: tuple[tuple[int, int, int], ...] = ((8, 1, 1),)
    frame_sampling: Literal["uniform", "released", "port"] = "uniform"
    num_video_frames: int = 128
    fps: float = 2.0
    audio_compression: Literal["none", "conv", "average", "max"] = "max"
    audio_hop_length: int = 160
    audio_n_fft: int = 400
    audio_padding_seconds: float | None = None
    sampling_rate: int = 16_000
    max_sound_seconds: float = 3600.0
    temporal_group_seconds: float | None = 30.0
    video_time: TimeEmbeddingConfig = field(default_factory=TimeEmbeddingConfig)
    sound_time: TimeEmbeddingConfig = field(default_factory=TimeEmbeddingConfig)
    omni_align: OmniAlignConfig = field(default_factory=OmniAlignConfig)

    def __post_init__(self):
        one_of("audio_compression", self.audio_compression, AUDIO_COMPRESSIONS)
        one_of("frame_sampling", self.frame_sampling, FRAME_SAMPLINGS)
        if self.audio_padding_seconds is not None and not self.audio_padding_seconds > 0:
            raise ConfigError(f"audio_padding_seconds is {self.audio_padding_seconds}: it must be > 0, or None")
        if self.s2_scales[0] != self.vision.image_size or any(s % self.s2_scales[0] for s in self.s2_scales):
            raise ConfigError(
                f"s2_scales is {self.s2_scales}: the first must be vision image_size ({self.vision.image_size}), "
                "and the others multiples of it"
            )
        min_tiles = (self.s2_scales[-1] // self.s2_scales[0]) ** 2
        if self.max_tiles < min_tiles:
            raise ConfigError(f"max_tiles is {self.max_tiles}: the largest of s2_scales needs {min_tiles} tiles")
        for _, height, width in self.pool_sizes:
            if self.tile_grid % height or self.tile_grid % width:
                raise ConfigError(
                    f"pool_sizes is {self.pool_sizes}: height and width must divide the {self.tile_grid} tokens along "
                    "a tile's side"
                )
        for name in ("video_time", "sound_time"):
            time = getattr(self, name)
            if time.scheme not in ("none", "learned") and time.channels > self.text.hidden_size:
                raise ConfigError(
                    f"{name}.trope_dim is {time.trope_dim}: scheme {time.scheme!r} rotates {time.channels} channels, "
                    f"and the decoder has {self.text.hidden_size}"
                )
        _check_multiple(
            "text_config.hidden_size", self.text.hidden_size, "omni_align.num_heads", self.omni_align.num_heads
        )

    @property
    def s2_sides(self) -> tuple[int, ...]:
        """Tiles along one side of each scale except the largest, whose grid varies: (1, 2) at full size."""
        return tuple(scale // self.s2_scales[0] for scale in self.s2_scales[:-1])

    @property
    def tile_grid(self) -> int:
        """Tokens along one side of a tile after 2x2 space-to-depth (odd grids are padded)."""
        return (self.vision.grid + 1) // 2

    @property
    def vision_pools(self) -> tuple[tuple[int, int, int], ...]:
        """All vision pools: (1, 1, 1) for images, then those of videos."""
        return tuple(dict.fromkeys(((1, 1, 1), *self.pool_sizes)))

    def pool_tokens(self, pool: int) -> int:
        """Tokens of one frame group of a pool."""
        _, height, width = self.vision_pools[pool]
        return (self.tile_grid // height) * (self.tile_grid // width)

    @property
    def window_tokens(self) -> int:
        """Audio tokens of one window, after the tower's pooling and the compression."""
        features = self.audio.max_source_positions // 2
        return {"none": features, "conv": (features + 1) // 2}.get(self.audio_compression, features // 2)

    @property
    def window_samples(self) -> int:
        """Waveform samples in one window."""
        return self.audio.window_frames * self.audio_hop_length

    def padded_samples(self, seconds: float) -> int:
        """Waveform samples of a sound of so many seconds, after padding with silence."""
        unit = self.window_samples
        if self.audio_padding_seconds is not None:
            unit = round(self.audio_padding_seconds * self.sampling_rate)
        return max(1, math.ceil(round(seconds * self.sampling_rate) / unit)) * unit

    def sound_windows(self, seconds: float) -> int:
        """Windows of a sound of so many seconds."""
        return math.ceil(self.padded_samples(seconds) // self.audio_hop_length / self.audio.window_frames)

    def replace(self, **changes) -> "OmniVinciConfig":
        """A copy with some fields changed; validates the result."""
        return dataclasses.replace(self, **changes)


def one_of(key: str, value: object, supported: tuple) -> None:
    """Raises ConfigError, naming the key, the value and the supported values, unless `value` is one of them."""
    if value not in supported:
        raise ConfigError(f"{key} is {value!r}; supported: {', '.join(map(repr, supported))}")


def _check_multiple(key: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise ConfigError(f"{key} is {value}: it must be a multiple of {divisor_name} ({divisor})")
