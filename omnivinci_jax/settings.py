"""Settings of a training run: dataclasses, read from a file in configs/ with `--config.a.b=...` overrides."""

import dataclasses
import difflib
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.errors import ConfigError, UserError, check_values
from omnivinci_jax.sequence.batch import Capacity


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    name, modality: its metrics are named modality/name.
    path: a JSONL file, or a folder of shards (`omnivinci shard`).
    weight: its share of the samples, relative to the other weights; 0 excludes it.
    speech_share: fraction of its samples whose prompts `DataConfig.voice` speaks.
    """

    name: str
    path: str
    modality: Literal["text", "image", "sound", "speech", "video", "omni"]
    weight: float = 1.0
    speech_share: float = 0.0


@dataclass(frozen=True)
class VoiceConfig:
    """A text-to-speech voice.

    backend: the espeak-ng program, or a server with OpenAI's /v1/audio/speech.
    voice: name of the voice; "" for the backend's default.
    url: base URL of the server, without /v1; model: name of its speech model.
    """

    backend: Literal["espeak-ng", "server"] = "espeak-ng"
    voice: str = ""
    url: str = ""
    model: str = "tts-1"


@dataclass(frozen=True)
class DataConfig:
    """Data sets and batches.

    train, val, held_out: JSONL files, or folders of shards; "" for none. val selects the best model; held_out is
        evaluated once, at the end.
    sources: a mixture to train on instead of `train`; voice: speaks the prompts of its `speech_share`.
    groups: groups in a global batch; capacity: of one group.
    workers: loader processes; 0 reads in the training process.
    too_long: skip a sample that does not fit a group, or thin out the frames of its videos.
    max_skipped: largest fraction of unreadable samples before the run stops and lists them.
    drop: stream to drop (blind baselines, Table 2).
    cache: folder for indices, spoken prompts and, with cache_media, tiles and windows of media files.
    """

    train: str = ""
    sources: tuple[Source, ...] = ()
    voice: VoiceConfig = field(default_factory=VoiceConfig)
    val: str = ""
    held_out: str = ""
    groups: int = 1
    capacity: Capacity = field(default_factory=lambda: Capacity(rows=1, slots=8192, tiles=128, windows=16, clips=8))
    workers: int = 2
    too_long: Literal["skip", "thin"] = "skip"
    max_skipped: float = 0.01
    drop: Literal["nothing", "sound", "vision"] = "nothing"
    cache: str = "runs/cache"
    cache_media: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for kernels with AdamW for the rest; linear warm-up, then cosine to zero.

    adam_learning_rate: for the parameters that Muon leaves to AdamW; None for the same rate.
    warmup: fraction of the steps (Appendix C.3: 3 %); clip_norm: of the global gradient norm, None for no clipping.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-5
    warmup: float = 0.03
    weight_decay: float = 0.0
    adam_learning_rate: float | None = None
    clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: add x @ a @ b * (alpha / rank) to the outputs of frozen kernels.

    rank: 0 for no adapters; with adapters, nothing else is trained.
    targets: regular expressions over paths of dense kernels ("llm/layers/self_attn/q_proj/kernel").
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("llm/layers/.*",)

    def __post_init__(self):
        if self.rank < 0:
            raise ConfigError(f"config.lora.rank is {self.rank}: must be 1 or more, or 0 for no adapters")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes the rest."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class RewardConfig:
    """A reward, by name, and its weight in the sum.

    function: "module:function", called with (prompt, answer, record) in a worker process; "" for the built-in reward of
        this name, `accuracy` or `format`.
    """

    name: str
    weight: float = 1.0
    function: str = ""


@dataclass(frozen=True)
class GRPOConfig:
    """Reinforcement learning by GRPO (Section 4.3); used if `TrainConfig.objective` is grpo.

    prompts, answers: prompts of a step, and answers sampled for each; updates: made with each step's answers.
    variant: how the loss is normalised (rl/advantages.py).
    epsilon: the ratio is clipped to 1 ± epsilon; beta: weight of the KL divergence from the reference, 0 for none.
    temperature, top_p, max_new_tokens: of sampling. rows: answers sampled at once.
    instruction: text added to the last message of every prompt.
    rewards: their weighted sum is the reward of an answer. reward_workers: processes that call own functions;
        reward_seconds: time limit of one call.
    resamples: how often the answers to a prompt are sampled anew while their rewards are all equal.
    mask_truncated: whether answers cut off at `max_new_tokens` are left out of the loss.
    max_sampler_difference: mean difference of log-probabilities between sampler and trainer that causes a warning.
    """

    prompts: int = 64
    answers: int = 8
    updates: int = 1
    variant: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    epsilon: float = 0.2
    beta: float = 0.04
    temperature: float = 1.0
    top_p: float = 0.99
    max_new_tokens: int = 2048
    rows: int = 64
    instruction: str = ""
    rewards: tuple[RewardConfig, ...] = (RewardConfig("accuracy"), RewardConfig("format"))
    reward_workers: int = 2
    reward_seconds: float = 10.0
    resamples: int = 0
    mask_truncated: bool = False
    max_sampler_difference: float = 0.05

    def __post_init__(self):
        rules = (
            ("answers", self.answers >= 2, "2 or more, since an advantage compares the answers to one prompt"),
            ("prompts", self.prompts >= 1, "1 or more"),
            ("updates", self.updates >= 1, "1 or more"),
            ("epsilon", 0 < self.epsilon < 1, "between 0 and 1"),
            ("beta", self.beta >= 0, "0 or more"),
            ("temperature", self.temperature > 0, "above 0: greedy answers are all the same"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("rows", self.rows >= 1, "1 or more"),
            ("reward_workers", self.reward_workers >= 1, "1 or more"),
            ("reward_seconds", self.reward_seconds > 0, "above 0"),
            ("resamples", self.resamples >= 0, "0 or more"),
            ("rewards", any(reward.weight for reward in self.rewards), "at least one with a weight that is not 0"),
        )
        check_values(self, rules, "config.grpo.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    objective: supervised learning of the answers in the data, or GRPO on their rewards.
    start_from: a model directory, or a work directory, with the initial parameters; "" for random ones. Keep it until
        the run ends: a resumed run reads the frozen parameters from it again.
    start_modules: modules to load from there ("llm", "vision_tower", ...); the rest is random; () for all.
    tokenizer: folder with tokenizer.json.
    align_weight: weight of the OmniAlignNet loss, added to the language loss.
    frozen: regular expressions over parameter paths ("llm/layers/..."); full matches are not trained.
    dtype: of activations and frozen parameters; trainable parameters are float32.
    tower_remat, decoder_remat: what the backward pass recomputes: none, dots (all except matrix products) or full.
    attention: the implementation; auto selects the hardware's flash kernel (models/attention_kernels.py).
    microbatches: parts into which a step splits its groups to save memory; the update is that of the whole batch.
    max_nonfinite: updates skipped for a loss or gradient that is not finite, before the run stops; so many in a row
        stop it too.
    steps, stop_after_conversations, stop_after_tokens: the length of the run; exactly one is above 0. Conversations
        count when they are read; tokens are slots that are not padding. The learning-rate schedule covers the expected
        number of steps (train/length.py).
    eval_every, checkpoint_every, log_every: in steps.
    """

    model: OmniVinciConfig = field(default_factory=OmniVinciConfig)
    start_from: str = ""
    start_modules: tuple[str, ...] = ()
    tokenizer: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: Literal["supervised", "grpo"] = "supervised"
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    steps: int = 1000
    stop_after_conversations: int = 0
    stop_after_tokens: int = 0
    seed: int = 0
    align_weight: float = 0.0
    # SigLIP's features come from its second-to-last layer, and Whisper's position table is fixed.
    frozen: tuple[str, ...] = (
        "vision_tower/last_layer/.*",
        "vision_tower/post_layernorm/.*",
        "sound_tower/embed_positions/.*",
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tower_remat: Literal["none", "dots", "full"] = "full"
    decoder_remat: Literal["none", "dots", "full"] = "full"
    attention: Literal["auto", "xla", "pallas", "splash"] = "auto"
    microbatches: int = 1
    max_nonfinite: int = 10
    eval_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 10

    def __post_init__(self):
        lengths = {name: getattr(self, name) for name in ("steps", "stop_after_conversations", "stop_after_tokens")}
        if min(lengths.values()) < 0 or sum(map(bool, lengths.values())) != 1:
            given = ", ".join(f"config.{name} = {value}" for name, value in lengths.items())
            raise ConfigError(f"{given}: exactly one must be above 0: the length of the run")
        for name in ("microbatches", "eval_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.{name} is {getattr(self, name)}: must be 1 or more")
        if self.data.groups < 1:
            raise ConfigError(f"config.data.groups is {self.data.groups}: must be 1 or more")
        if self.objective == "grpo":
            self._check_grpo()

    def _check_grpo(self) -> None:
        prompts, answers, groups = self.grpo.prompts, self.grpo.answers, self.data.groups
        if prompts % groups and (groups % prompts or answers % (groups // prompts)):
            raise ConfigError(
                f"config.grpo.prompts is {prompts}: it must be a multiple of config.data.groups = {groups}, or the "
                f"answers to a prompt ({answers}) must divide evenly over several groups"
            )
        if not self.steps:
            raise ConfigError("config.steps is 0: give the length of a GRPO run in steps")
        if self.align_weight:
            raise ConfigError(f"config.align_weight is {self.align_weight}: GRPO has no contrastive loss; set it to 0")


def to_config_dict(settings: Any) -> ConfigDict:
    """Converts a dataclass to a ConfigDict whose values the command line can override (None becomes a placeholder).

    A tuple of named entries becomes a dictionary by name, so that overrides can reach each entry:
    `--config.data.sources.NAME.weight=0`.
    """
    hints, fields = typing.get_type_hints(type(settings)), _fields(type(settings))
    values = ConfigDict()
    for name in fields:
        value = getattr(settings, name)
        if _fields(type(value)):
            values[name] = to_config_dict(value)
        elif _is_named(hints[name]):
            values[name] = _by_name(value, name, to_config_dict)
        elif value is None:
            (values[name],) = (config_dict.placeholder(hint) for hint in typing.get_args(hints[name])[:1])
        else:
            values[name] = value
    return values


def from_mapping(cls: type, values: typing.Mapping | ConfigDict, key: str = "config") -> Any:
    """Builds a dataclass from nested mappings; raises ConfigError for an unknown key."""
    hints, fields = typing.get_type_hints(cls), _fields(cls)
    for name in values:
        if name not in fields:
            raise ConfigError(f"{key}.{name}: no such key{nearest(name, fields)}")
    return cls(**{name: _build(hints[name], values[name], f"{key}.{name}") for name in fields if name in values})


def to_mapping(settings: Any) -> Any:
    """Converts a dataclass to nested dicts and lists that JSON can represent."""
    if names := _fields(type(settings)):
        hints = typing.get_type_hints(type(settings))
        return {
            name: _by_name(value, name, to_mapping) if _is_named(hints[name]) else to_mapping(value)
            for name, value in ((name, getattr(settings, name)) for name in names)
        }
    return [to_mapping(value) for value in settings] if isinstance(settings, list | tuple) else settings


def load_config(arguments: list[str], kind: type = TrainConfig) -> Any:
    """Reads a `kind` from `--config FILE` and its overrides (`--config.a.b=value`).

    Raises:
        ConfigError: an unreadable file, an unknown key, a value of the wrong type, an unexpected argument.
        UserError: raised by the file itself.
    """
    # Configurations import each other as `configs.tiny`, which works under `python -m` but not in a script.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        values, rest = _parse(arguments[:1] if arguments[:1] and "=" in arguments[0] else arguments[:2])
        _check_keys(values, arguments)
        values, rest = _parse(arguments)
    except flags.Error as error:
        raised = _first_cause(error)  # ml_collections wraps errors of a configuration file, traceback included
        if isinstance(raised, UserError):
            raise raised from None
        raise ConfigError(str(error).replace("\n", " ")) from None
    except (OSError, ImportError, SyntaxError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"cannot read the configuration file: {reason}") from None
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; write overrides as --config.key=value")
    return from_mapping(kind, values)


def parse_mesh(text: str) -> MeshConfig:
    """Parses a mesh from the command line, "data=1,tensor=4": omitted axes are 1, and fsdp takes the rest.

    Raises:
        ConfigError: a malformed text, or an unknown axis.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.removeprefix("-").isdigit() or axis in sizes:
            raise ConfigError(f"--mesh is {text!r}: write axes with their sizes, for example data=1,tensor=4")
        sizes[axis] = int(size)
    return from_mapping(MeshConfig, sizes, "--mesh")


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """Returns a hint for a misspelt name: "; did you mean X?", or all known names."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; choose from {', '.join(names)}"


def _parse(arguments: list[str]) -> tuple[ConfigDict, list[str]]:
    values = flags.FlagValues()
    argv = ["omnivinci", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    rest = values(argv)[1:]
    if values.config is None:
        raise ConfigError("give a configuration: --config configs/tiny.py")
    list(values.config)  # a file that failed to load raises OSError on first use
    return values.config, rest


def _first_cause(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _check_keys(values: ConfigDict, arguments: list[str]) -> None:
    for argument in arguments:
        if argument.startswith("--config."):
            node, key = values, "config"
            for name in argument.split("=")[0].removeprefix("--config.").split("."):
                if not isinstance(node, ConfigDict) or name not in node:
                    names = list(node) if isinstance(node, ConfigDict) else []
                    raise ConfigError(f"{key}.{name}: no such key{nearest(name, names)}")
                node, key = node[name], f"{key}.{name}"


def _fields(cls: type | types.GenericAlias) -> tuple[str, ...]:
    """Names of a dataclass's or a NamedTuple's fields; none for anything else."""
    if dataclasses.is_dataclass(cls):
        return tuple(entry.name for entry in dataclasses.fields(cls))
    return getattr(cls, "_fields", ())


def _is_named(hint: Any) -> bool:
    """Whether a field is a tuple of named dataclasses, which a configuration stores as a mapping."""
    return typing.get_origin(hint) is tuple and "name" in _fields(typing.get_args(hint)[0])


def _by_name(entries: tuple, key: str, convert: typing.Callable[[Any], typing.Mapping | ConfigDict]) -> dict:
    named = {}
    for entry in entries:
        if entry.name in named:
            raise ConfigError(f"{key}: two entries are named {entry.name!r}; give each a unique name")
        named[entry.name] = {name: value for name, value in convert(entry).items() if name != "name"}
    return named


def _build(hint: Any, value: Any, key: str) -> Any:
    if isinstance(hint, type) and _fields(hint):
        if isinstance(value, hint):  # an entry of a list, which the command line cannot reach
            return value
        if not isinstance(value, typing.Mapping | ConfigDict):
            raise ConfigError(f"{key} is {value!r}: must be a mapping with the keys {', '.join(_fields(hint))}")
        return from_mapping(hint, value, key)
    origin = typing.get_origin(hint)
    if origin is dict and isinstance(value, ConfigDict):
        return value.to_dict()
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _build(typing.get_args(hint)[0], value, key)
    if origin is Literal:
        if value not in typing.get_args(hint):
            supported = ", ".join(map(repr, typing.get_args(hint)))
            raise ConfigError(f"{key} is {value!r}; supported: {supported}")
        return value
    if _is_named(hint):
        entry = typing.get_args(hint)[0]
        return tuple(from_mapping(entry, {"name": name, **value[name]}, f"{key}.{name}") for name in value)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, typing.Sequence):
            raise ConfigError(f"{key} is {value!r}: must be a list")
        kinds = typing.get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return tuple(_build(kind, entry, key) for kind, entry in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{key} is {value!r}: must be a {hint.__name__}")
    return value
