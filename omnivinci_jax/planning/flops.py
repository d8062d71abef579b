"""FLOPs of a training step, counted from shapes.

Counts matrix products only (weights, the sound tower's convolutions, attention), as a multiply and an add each. It
excludes elementwise operations, embedding look-ups, Dynamic-S2's resizing (0.1 % of the vision tower) and
rematerialization, so that dividing by time and peak FLOP/s gives the model FLOPs utilization (MFU). Attention counts
the unmasked pairs: a slot attends to itself and the earlier slots of its conversation.

A product costs its forward pass once; once more for the activation gradient, if anything in or before its part of the
model is trained; once more for the weight gradient, if its weights are trained. So a trained part costs three forward
passes; a frozen part costs two if something before it is trained, else one. Attention has no weights and two activation
operands, so it costs three forward passes wherever gradients flow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from flax import traverse_util
from jax.sharding import Mesh

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.compute import Remat
from omnivinci_jax.models.initialization import parameter_roles, unbox_abstract
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.planning.hardware import chip_of
from omnivinci_jax.settings import DataConfig, TrainConfig
from omnivinci_jax.train.metrics import Work
from omnivinci_jax.train.state import abstract_initial, split_trainable


def full_work(data: DataConfig) -> Work:
    """Returns the work of a step with full groups: one conversation per row, every tile a frame of a clip."""
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
        """Sum over all parts."""
        return sum(self)


@dataclass(frozen=True)
class _Part:
    """The products of one module.

    field: the field of Flops; path: of the parameters.
    upstream: paths of the parameters that the input depends on.
    rows: number of vectors that each matrix multiplies; attention: FLOPs of attention in the forward pass.
    remat: what the backward pass recomputes.
    """

    field: str
    path: str
    rows: Callable[[Work], float]
    upstream: tuple[str, ...] = ()
    attention: Callable[[Work], float] = lambda work: 0.0
    remat: Remat = "none"


class _Counted(NamedTuple):
    """A part, the sizes of its trained and of all its matrices, and whether gradients flow through it."""

    part: _Part
    trained: int
    weights: int
    has_gradient: bool


class FlopCounter:
    """Counts the FLOPs of one configuration. The first one made of a model traces the model's initialisation.

    In GRPO, encoders that do not train run in the rollout and not in an update, so they do not count.

    Raises:
        ConfigError: `config.frozen` matches no parameter, or all of them.
    """

    def __init__(self, config: TrainConfig):
        params = unbox_abstract(abstract_initial(config))
        roles = cast("dict[str, Role]", traverse_util.flatten_dict(parameter_roles(config.model, params), sep="/"))
        trees = split_trainable(params, config)
        trained, frozen = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)

        def matrices(part: _Part, leaves: dict) -> int:
            return sum(leaf.size for path, leaf in leaves.items() if _is_in(path, part.path) and roles[path].multiplies)

        self._counted = [
            _Counted(
                part,
                trained=matrices(part, trained),
                weights=matrices(part, trained | frozen),
                has_gradient=any(_is_in(path, module) for path in trained for module in (part.path, *part.upstream)),
            )
            for part in _parts(config)
            if config.objective != "grpo"
            or part.path.split("/")[0] not in {"vision_tower", "sound_tower"} - set(trees[0])
        ]

    def forward(self, work: Work) -> Flops:
        """Returns the FLOPs of the forward pass."""
        return self._sum(work, lambda count: (count.weights, 1))

    def step(self, work: Work) -> Flops:
        """Returns the FLOPs of the forward and the backward pass."""
        return self._sum(
            work, lambda count: (count.weights * (1 + count.has_gradient) + count.trained, 1 + 2 * count.has_gradient)
        )

    def recomputed(self, work: Work) -> Flops:
        """Returns an upper bound of what rematerialization adds to `step`: XLA removes unused results."""
        return self._sum(
            work,
            lambda count: (
                count.weights * count.has_gradient * (count.part.remat == "full"),
                count.has_gradient * (count.part.remat != "none"),
            ),
        )

    def _sum(self, work: Work, factors: Callable[[_Counted], tuple[float, float]]) -> Flops:
        """Sums over all parts; `factors` gives the weights that multiply a row and the passes of attention."""
        flops = dict.fromkeys(Flops._fields, 0.0)
        for count in self._counted:
            weights, attention_passes = factors(count)
            part = count.part
            flops[part.field] += 2 * weights * part.rows(work) + attention_passes * part.attention(work)
        return Flops(**flops)


def make_flop_rates(config: TrainConfig, mesh: Mesh) -> Callable[[Work], dict[str, float]]:
    """Returns a function from the work per second to metrics of a training run on `mesh`.

    The metrics are `tflops_per_second`, the encoders' share of it (`encoder_tflops_per_second`) and, if the chip's peak
    is known, the model FLOPs utilization (`mfu`).
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


def _is_in(path: str, module: str) -> bool:
    return path.startswith(f"{module}/")


def _parts(config: TrainConfig) -> list[_Part]:
    model = config.model
    vision, audio, text = model.vision, model.audio, model.text
    patches, positions = vision.grid**2, audio.max_source_positions
    # SigLIP's last layer and final norm are stored but never computed.
    tower = tuple(f"vision_tower/{name}" for name in ("patch_embedding", "position_embedding", "layers"))
    vision_modules, sound_modules = (*tower, "mm_projector"), ("sound_tower", "sound_mm_projector")
    parts = [
        _Part("vision", tower[0], lambda work: work.tiles * patches),
        _Part(
            "vision",
            tower[2],
            lambda work: work.tiles * patches,
            tower[:2],
            lambda work: work.tiles * (vision.num_hidden_layers - 1) * _pair_flops(vision.hidden_size) * patches**2,
            config.tower_remat,
        ),
        _Part("vision", "mm_projector", lambda work: work.tiles * model.tile_grid**2, tower),
        _Part("vision", "video_time", lambda work: _vision_tokens(model, work), vision_modules),
        _Part("sound", "sound_tower/conv1", lambda work: work.windows * audio.window_frames),
        _Part("sound", "sound_tower/conv2", lambda work: work.windows * positions, ("sound_tower/conv1",)),
        _Part(
            "sound",
            "sound_tower/layers",
            lambda work: work.windows * positions,
            ("sound_tower/conv1", "sound_tower/conv2"),
            lambda work: work.windows * audio.encoder_layers * _pair_flops(audio.d_model) * positions**2,
            config.tower_remat,
        ),
        _Part("sound", "sound_mm_projector", lambda work: work.windows * model.window_tokens, ("sound_tower",)),
        _Part("sound", "sound_time", lambda work: work.windows * model.window_tokens, sound_modules),
        _Part(
            "decoder",
            "llm/layers",
            lambda work: work.slots,
            (*vision_modules, *sound_modules, "video_time", "sound_time", "llm/embed_tokens"),
            lambda work: text.num_hidden_layers * _pair_flops(text.hidden_size) * (work.slot_pairs + work.slots) / 2,
            config.decoder_remat,
        ),
        _head(text.tie_word_embeddings, (*vision_modules, *sound_modules, "video_time", "sound_time", "llm")),
    ]
    if config.align_weight:
        parts += [
            _align(config, "vision", lambda work: _vision_tokens(model, work), vision_modules),
            _align(config, "audio", lambda work: work.windows * model.window_tokens, sound_modules),
        ]
    return parts


def _pair_flops(width: int) -> int:
    """Returns the attention FLOPs of one query-key pair, over heads with `width` channels in total: score and value."""
    return 4 * width


def _vision_tokens(model: OmniVinciConfig, work: Work) -> float:
    """Returns the tokens of `work.tiles` frames after the videos' pools."""
    pools = ((model.vision_pools.index(pool), pool[0]) for pool in dict.fromkeys(model.pool_sizes))
    return sum(work.tiles / frames * model.pool_tokens(pool) for pool, frames in pools)


def _head(tied: bool, upstream: tuple[str, ...]) -> _Part:
    return _Part("decoder", "llm/embed_tokens" if tied else "llm/lm_head", lambda work: work.slots, upstream)


def _align(config: TrainConfig, modality: str, tokens: Callable[[Work], float], upstream: tuple[str, ...]) -> _Part:
    """Counts one modality of OmniAlignNet, where each clip's query and tokens attend to each other."""
    pair_flops = config.model.omni_align.num_layers * _pair_flops(config.model.text.hidden_size)

    def length(work: Work) -> float:
        return tokens(work) / work.clips + 1 if work.clips else 0.0

    return _Part(
        "align",
        f"omni_align/{modality}",
        lambda work: work.clips * length(work),
        upstream,
        lambda work: work.clips * length(work) ** 2 * pair_flops,
        config.decoder_remat,
    )
