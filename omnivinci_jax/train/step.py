"""The jitted training and evaluation steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.batch import Batch
from omnivinci_jax.train.losses import contrastive_loss, language_loss, right_tokens, token_losses
from omnivinci_jax.train.state import TrainState, merge

Metrics = dict[str, Array]


def make_train_step(
    model: OmniVinci, optimizer: optax.GradientTransformation, align_weight: float, shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One update of the trainable parameters; the old state's buffers are donated to the new one.

    Where the loss or a gradient is not finite, only the step is counted, and the metric `finite` is 0.
    """

    def loss_of(trainable: dict, frozen: dict, batch: Batch) -> tuple[Array, Metrics]:
        params = merge(trainable, frozen)
        output = model.apply({"params": params}, batch)
        logits = model.apply({"params": params}, output.hidden, method=model.logits)
        language = language_loss(token_losses(logits, batch.targets), batch.loss_weights)
        metrics = {"loss": language}
        if not align_weight:
            return language, metrics
        clips = (output.vision_clips, output.audio_clips, batch.clip_source)
        vision, audio, source = (array.reshape(-1, *array.shape[2:]) for array in clips)
        align, recalls = contrastive_loss(vision, audio, source, output.align_scale)
        return language + align_weight * align, metrics | {"align_loss": align} | recalls

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradients, metrics = jax.grad(loss_of, has_aux=True)(state.trainable, state.frozen, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics["grad_norm"] = optax.global_norm(gradients)
        metrics["finite"] = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(metrics["finite"], new, old),
            (trainable, opt_state),
            (state.trainable, state.opt_state),
        )
        metrics["tokens"] = jnp.sum(batch.segment_ids > 0)
        return state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(model: OmniVinci) -> Callable[[dict, Batch], tuple[Array, Array]]:
    """Per slot: (loss times weight, whether greedy decoding would say what is asked); both [G, R, T]."""

    def eval_step(params: dict, batch: Batch) -> tuple[Array, Array]:
        output = model.apply({"params": params}, batch)
        logits = model.apply({"params": params}, output.hidden, method=model.logits)
        losses = token_losses(logits, batch.targets) * batch.loss_weights
        return losses, right_tokens(logits, batch.targets, batch.loss_weights)

    return jax.jit(eval_step)
