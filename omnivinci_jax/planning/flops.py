"""FLOPs of a training step, counted from shapes.

The convention: matrix products alone (weights, the sound tower's convolutions, attention), a multiply and an add each.
Not counted are elementwise work, table look-ups, Dynamic-S2's resizing (0.1 % of the vision tower) and whatever is
computed a second time, so that dividing by time and peak FLOP/s gives the model FLOPs utilization (MFU). Attention is
counted for the pairs that its mask lets through: a slot sees itself and the earlier slots of its conversation.

A product costs its forward pass once; once more where gradients pass through its part of the model (something is
trained in it or before it); once more where its own weights are trained. So a trained part costs three times its
forward pass, a frozen part behind a trained one two times, and an encoder with nothing trained in or before it once.
Attention multiplies activations alone, and so costs three times its forward pass wherever gradients pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.compute import Remat
from omnivinci_jax.models.initialization import parameter_roles
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.planning.hardware import chip_of
from omnivinci_jax.settings import DataConfig, TrainConfig
from omnivinci_jax.train.metrics import Work
from omnivinci_jax.train.state import initial_params, split_trainable


def full_work(data: DataConfig) -> Work:
    """The work of a step whose groups are full: one conversation in each row, every tile a frame of some clip."""
    groups, capacity = data.groups, data.capacity
    rows = groups * capacity.rows
    return Work(
        slots=rows * capacity.slots,
        slot_pairs=rows * capacity.slots**2,
        tiles=groups * capacity.tiles,
        windows=groups * capacity.windows,
        clips=groups * capacity.clips,
    )


class Flops(NamedTuple):
    """FLOPs by part: each encoder with its projector and time embedding, OmniAlignNet, the decoder with its head."""

    vision: float = 0.0
    sound: float = 0.0
    align: float = 0.0
    decoder: float = 0.0

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self)


@dataclass(frozen=True)
class _Part:
    """Products of one place in the model.

    of: the field of Flops; path: of the parameters.
    before: paths of the parameters that the input depends on.
    rows: how many vectors each matrix multiplies; attention: FLOPs of the forward pass's attention.
    remat: what of them the backward pass computes again.
    """

    of: str
    path: str
    rows: Callable[[Work], float]
    before: tuple[str, ...] = ()
    attention: Callable[[Work], float] = lambda work: 0.0
    remat: Remat = "none"


class _Counted(NamedTuple):
    """A part with the sizes of its trained and of all its matrices, and whether gradients pass through it."""

    part: _Part
    trained: int
    weights: int
    passes: bool


class FlopCounter:
    """Counts for one configuration. Make it once: it traces the initialisation of the model.

    Raises:
        ConfigError: `config.frozen` names no parameter, or all of them.
    """

    def __init__(self, config: TrainConfig):
        model = OmniVinci(config.model)
        params = jax.eval_shape(lambda key: nn.meta.unbox(initial_params(model, config, key)), jax.random.key(0))
        roles = cast("dict[str, Role]", traverse_util.flatten_dict(parameter_roles(config.model, params), sep="/"))
        trees = split_trainable(params, config)
        trained, frozen = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)

        def matrices(part: _Part, leaves: dict) -> int:
            return sum(leaf.size for path, leaf in leaves.items() if _under(path, part.path) and roles[path].multiplies)

        self._counted = [
            _Counted(
                part,
                trained=matrices(part, trained),
                weights=matrices(part, trained | frozen),
                passes=any(_under(path, place) for path in trained for place in (part.path, *part.before)),
            )
            for part in _parts(config)
        ]

    def forward(self, work: Work) -> Flops:
        """Of the forward pass."""
        return self._sum(work, lambda count: (count.weights, 1))

    def step(self, work: Work) -> Flops:
        """Of the forward and the backward pass."""
        return self._sum(work, lambda count: (count.weights * (1 + count.passes) + count.trained, 1 + 2 * count.passes))

    def recomputed(self, work: Work) -> Flops:
        """What rematerialization adds to `step`, or a little more: XLA leaves out what nothing reads."""
        return self._sum(
            work,
            lambda count: (
                count.weights * count.passes * (count.part.remat == "full"),
                count.passes * (count.part.remat != "none"),
            ),
        )

    def _sum(self, work: Work, times: Callable[[_Counted], tuple[float, float]]) -> Flops:
        """Over all parts, `times` giving how many weights multiply a row, and how often attention is computed."""
        flops = dict.fromkeys(Flops._fields, 0.0)
        for count in self._counted:
            weights, attentions = times(count)
            flops[count.part.of] += 2 * weights * count.part.rows(work) + attentions * count.part.attention(work)
        return Flops(**flops)


def make_flop_rates(config: TrainConfig, mesh: Mesh) -> Callable[[Work], dict[str, float]]:
    """From the work of a second to metrics of a training run on `mesh`.

    `tflops_per_second`, and of these the encoders' (`encoder_tflops_per_second`); where the chip's peak is known, the
    model FLOPs utilization (`mfu`).
    """
    counter, chip = FlopCounter(config), chip_of(mesh.devices.flat[0].device_kind)

    def rates(work: Work) -> dict[str, float]:
        flops = counter.step(work)
        rates = {
            "tflops_per_second": flops.total / 1e12,
            "encoder_tflops_per_second": (flops.vision + flops.sound) / 1e12,
        }
        return rates | {"mfu": flops.total / (chip.flops * mesh.size)} if chip else rates

    return rates


def _under(path: str, place: str) -> bool:
    return path.startswith(f"{place}/")


def _parts(config: TrainConfig) -> list[_Part]:
    model = config.model
    vision, audio, text = model.vision, model.audio, model.text
    patches, moments = vision.grid**2, audio.max_source_positions
    # The last layer of SigLIP and the norm after it are parameters that nothing computes with.
    tower = tuple(f"vision_tower/{name}" for name in ("patch_embedding", "position_embedding", "layers"))
    see, hear = (*tower, "mm_projector"), ("sound_tower", "sound_mm_projector")
    parts = [
        _Part("vision", tower[0], lambda work: work.tiles * patches),
        _Part(
            "vision",
            tower[2],
            lambda work: work.tiles * patches,
            tower[:2],
            lambda work: work.tiles * (vision.num_hidden_layers - 1) * _pairs(vision.hidden_size) * patches**2,
            config.tower_remat,
        ),
        _Part("vision", "mm_projector", lambda work: work.tiles * model.tile_grid**2, tower),
        _Part("vision", "video_time", lambda work: _vision_tokens(model, work), see),
        _Part("sound", "sound_tower/conv1", lambda work: work.windows * audio.window_frames),
        _Part("sound", "sound_tower/conv2", lambda work: work.windows * moments, ("sound_tower/conv1",)),
        _Part(
            "sound",
            "sound_tower/layers",
            lambda work: work.windows * moments,
            ("sound_tower/conv1", "sound_tower/conv2"),
            lambda work: work.windows * audio.encoder_layers * _pairs(audio.d_model) * moments**2,
            config.tower_remat,
        ),
        _Part("sound", "sound_mm_projector", lambda work: work.windows * model.window_tokens, ("sound_tower",)),
        _Part("sound", "sound_time", lambda work: work.windows * model.window_tokens, hear),
        _Part(
            "decoder",
            "llm/layers",
            lambda work: work.slots,
            (*see, *hear, "video_time", "sound_time", "llm/embed_tokens"),
            lambda work: text.num_hidden_layers * _pairs(text.hidden_size) * (work.slot_pairs + work.slots) / 2,
            config.decoder_remat,
        ),
        _head(text.tie_word_embeddings, (*see, *hear, "video_time", "sound_time", "llm")),
    ]
    if config.align_weight:
        parts += [
            _align(config, "vision", lambda work: _vision_tokens(model, work), see),
            _align(config, "audio", lambda work: work.windows * model.window_tokens, hear),
        ]
    return parts


def _pairs(width: int) -> int:
    """FLOPs of one pair of query and key over heads of `width` channels together: a score, and a weighted value."""
    return 4 * width


def _vision_tokens(model: OmniVinciConfig, work: Work) -> float:
    """Tokens that the videos' pools make of `work.tiles` frames."""
    pools = ((model.vision_pools.index(pool), pool[0]) for pool in dict.fromkeys(model.pool_sizes))
    return sum(work.tiles / frames * model.pool_tokens(pool) for pool, frames in pools)


def _head(tied: bool, before: tuple[str, ...]) -> _Part:
    return _Part("decoder", "llm/embed_tokens" if tied else "llm/lm_head", lambda work: work.slots, before)


def _align(config: TrainConfig, modality: str, tokens: Callable[[Work], float], before: tuple[str, ...]) -> _Part:
    """One modality of OmniAlignNet: each clip's query and tokens see each other."""
    pair = config.model.omni_align.num_layers * _pairs(config.model.text.hidden_size)

    def length(work: Work) -> float:
        return tokens(work) / work.clips + 1 if work.clips else 0.0

    return _Part(
        "align",
        f"omni_align/{modality}",
        lambda work: work.clips * length(work),
        before,
        lambda work: work.clips * length(work) ** 2 * pair,
        config.decoder_remat,
    )
