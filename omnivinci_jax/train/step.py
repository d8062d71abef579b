"""The jitted training and evaluation steps."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num

from omnivinci_jax.mesh.rules import replicated
from omnivinci_jax.models.omni_align import ClipEmbeddings
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.train.losses import contrastive_loss, score_slots
from omnivinci_jax.train.state import TrainState, merge

Metrics = dict[str, Array]
Gradient = Callable[[dict, dict, Batch], tuple[dict, Metrics]]
AlignLoss = Callable[[ClipEmbeddings], tuple[Array, Metrics]]


def make_train_step(
    model: OmniVinci,
    optimizer: optax.GradientTransformation,
    align_weight: float,
    shardings: TrainState,
    microbatches: int = 1,
    num_sources: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One update of the trainable parameters; the old state's buffers are donated to the new one.

    Metrics are numbers, but for three vectors over the `num_sources` data sets of the mixture: sums of losses and of
    their weights, and samples.

    Where the loss or a gradient is not finite, only the step is counted, and the metric `finite` is 0.
    """
    compute_gradient = make_gradient(model, align_weight, microbatches, num_sources)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient, metrics = compute_gradient(state.trainable, state.frozen, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics["grad_norm"] = optax.global_norm(gradient)
        metrics["finite"] = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(metrics["finite"], new, old),
            (trainable, opt_state),
            (state.trainable, state.opt_state),
        )
        metrics["tokens"] = jnp.sum(batch.segment_ids > 0)
        metrics["source_samples"] = by_source(sample_starts(batch.segment_ids), batch.sources, num_sources)
        metrics["samples"] = metrics["source_samples"].sum()
        return state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, shardings.step))


def make_gradient(model: OmniVinci, align_weight: float, microbatches: int = 1, num_sources: int = 1) -> Gradient:
    """The gradient of both losses over the trainable parameters, and their metrics.

    With `microbatches` the groups of a batch are taken in so many turns, with the gradient of the whole batch: the
    language loss is divided by the weight of all turns, and the contrastive loss is taken over the clips of all. Every
    clip is every other's negative, so all are embedded once without gradients; then each turn takes the loss's gradient
    with respect to its own embeddings back to the parameters.
    """

    def loss_of(trainable: dict, frozen: dict, batch: Batch, weight: Array, align: AlignLoss) -> tuple[Array, Metrics]:
        params = merge(trainable, frozen)
        output = model.apply({"params": params}, batch)
        losses, _ = score_slots(model, params, output.hidden, batch.targets)
        losses *= batch.loss_weights
        language = jnp.sum(losses) / weight
        metrics = {
            "loss": language,
            "source_losses": by_source(losses, batch.sources, num_sources),
            "source_weights": by_source(batch.loss_weights, batch.sources, num_sources),
        }
        if not align_weight:
            return language, metrics
        loss, align_metrics = align(output.clips)
        return language + align_weight * loss, metrics | align_metrics

    differentiate = jax.grad(loss_of, has_aux=True)

    def at_once(trainable: dict, frozen: dict, batch: Batch) -> tuple[dict, Metrics]:
        return differentiate(trainable, frozen, batch, trained_weight(batch), partial(align_loss, batch=batch))

    def in_turns(trainable: dict, frozen: dict, batch: Batch) -> tuple[dict, Metrics]:
        parts = jax.tree.map(partial(_split_groups, count=microbatches), batch)
        toward, align_metrics = None, {}
        if align_weight:
            params = {"params": merge(trainable, frozen)}
            clips = jax.lax.map(lambda part: model.apply(params, part, method=model.embed_clips), parts)
            clips = clips._replace(scale=clips.scale[0])
            toward, align_metrics = jax.grad(align_loss, has_aux=True)(clips, parts)
            toward = toward._replace(scale=jnp.full(microbatches, toward.scale / microbatches))

        def turn(total: dict, part_and_toward: tuple[Batch, ClipEmbeddings]) -> tuple[dict, Metrics]:
            part, toward = part_and_toward

            def linear(clips: ClipEmbeddings) -> tuple[Array, Metrics]:
                return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, clips, toward))), {}

            gradient, metrics = differentiate(trainable, frozen, part, trained_weight(batch), linear)
            return jax.tree.map(jnp.add, total, gradient), metrics

        gradient, metrics = jax.lax.scan(turn, jax.tree.map(jnp.zeros_like, trainable), (parts, toward))
        return gradient, jax.tree.map(partial(jnp.sum, axis=0), metrics) | align_metrics

    return at_once if microbatches == 1 else in_turns


def trained_weight(batch: Batch) -> Array:
    """What the language loss is divided by: the weight of all trained tokens, or 1 where there are none."""
    return jnp.maximum(jnp.sum(batch.loss_weights), 1.0)


def align_loss(clips: ClipEmbeddings, batch: Batch) -> tuple[Array, Metrics]:
    """The contrastive loss over all clips of a batch."""
    vision, audio = (x.reshape(-1, x.shape[-1]) for x in (clips.vision, clips.audio))
    loss, recalls = contrastive_loss(vision, audio, batch.clip_source.ravel(), clips.scale)
    return loss, {"align_loss": loss} | recalls


def by_source(values: Num[Array, "G R T"], sources: Int[Array, "G R T"], num_sources: int) -> Num[Array, " sources"]:
    """Sums of a slot's values over the data sets that the slots come from."""
    # One reduction, which XLA fuses and shards; a scatter it would do neither with.
    return jnp.sum(jnp.where(sources[..., None] == jnp.arange(num_sources), values[..., None], 0), axis=(0, 1, 2))


def sample_starts(segment_ids: Int[Array, "G R T"]) -> Int[Array, "G R T"]:
    """1 where a conversation starts: where the number of a slot's segment is new and not 0."""
    before = jnp.pad(segment_ids, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    return ((segment_ids > 0) & (segment_ids != before)).astype(jnp.int32)


def _split_groups(x: Array, count: int) -> Array:
    """[G, ...] to [count, G / count, ...], where every device keeps the groups it has."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = nn.logical_to_mesh_axes((None, "group"))
    devices = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    x = x.reshape(devices, count, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(count, -1, *x.shape[3:])
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec)


class Scores(NamedTuple):
    """What an evaluation is made from, for every slot, and held by every process.

    right: whether greedy decoding would say what is asked there, or nothing is. An answer all of whose tokens are right
    is exactly what greedy decoding would have generated, so one forward pass measures exact-match accuracy.
    clips, clip_source: what OmniAlignNet makes of every clip with both streams, if asked, and of which file it is.
    """

    losses: Float[Array, "G R T"]
    weights: Float[Array, "G R T"]
    right: Bool[Array, "G R T"]
    segment_ids: Int[Array, "G R T"]
    clips: ClipEmbeddings | None
    clip_source: Int[Array, "G K"]


def make_eval_step(model: OmniVinci, mesh: Mesh, align: bool = True) -> Callable[[dict, Batch], Scores]:
    """Scores of a batch; with `align` OmniAlignNet is asked too."""

    def eval_step(params: dict, batch: Batch) -> Scores:
        output = model.apply({"params": params}, batch)
        losses, right = score_slots(model, params, output.hidden, batch.targets)
        weights = batch.loss_weights
        right |= weights == 0
        clips = output.clips if align else None
        return Scores(losses * weights, weights, right, batch.segment_ids, clips, batch.clip_source)

    return jax.jit(eval_step, out_shardings=replicated(mesh))
