"""The jitted training step, made from a loss function and an optimizer.

A loss function maps (params, batch) to (loss, metrics). A batch is any pytree of arrays whose first axis is groups.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from omnivinci_jax.models.sharding import mesh_axes
from omnivinci_jax.train.state import TrainState, merge

Metrics = dict[str, Array]
LossFn = Callable[[dict, Any], tuple[Float[Array, ""], Metrics]]


class Terms(NamedTuple):
    """A batch's loss as a sum of one term for each of its M microbatches.

    loss_fn: maps (params, inputs of one microbatch) to (term, metrics). The gradients of all terms add up to the
        gradient of the batch's loss, and their metrics to its metrics.
    inputs: of all microbatches, stacked: the first axis of every array is M.
    metrics: metrics of the whole batch that no microbatch can compute.
    """

    loss_fn: LossFn
    inputs: Any
    metrics: Metrics


@runtime_checkable
class SplitLossFn(Protocol):
    """A loss function that is not the mean of its microbatches' losses, and therefore says how it splits."""

    def __call__(self, params: dict, batch: Any) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss and the metrics of a batch."""
        ...

    def split(self, params: dict, microbatches: Any) -> Terms:
        """Splits the loss of a batch into a sum over its `microbatches` (stacked, [M, G / M, ...])."""
        ...


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, shardings: TrainState, *, microbatches: int = 1
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """Returns a function that updates the trainable parameters and donates the old state's buffers to the new state.

    To the loss function's metrics it adds `loss` (unless the function reports its own), `grad_norm` and `finite`. If
    the loss or a gradient is not finite, `finite` is 0 and the step counts, but nothing is updated.
    """
    compute_gradient = make_gradient(loss_fn, microbatches)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
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
        return TrainState(state.step + 1, trainable, state.frozen, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, shardings.step))


def make_gradient(loss_fn: LossFn, microbatches: int = 1) -> Callable[[dict, dict, Any], tuple[dict, Metrics]]:
    """Returns a function from (trainable, frozen, batch) to the gradient of the trainable parameters and the metrics.

    To save memory, `microbatches` > 1 splits the groups of a batch and accumulates the gradient of the whole batch. A
    `SplitLossFn` says how its loss splits. Any other loss is treated as a mean over groups: loss, gradient and metrics
    are means over the microbatches, except integer metrics, which are counts and add up.
    """

    def accumulate(trainable: dict, frozen: dict, batch: Any) -> tuple[dict, Metrics]:
        parts = jax.tree.map(partial(split_groups, count=microbatches), batch)
        split = loss_fn.split if isinstance(loss_fn, SplitLossFn) else partial(_mean_terms, loss_fn, microbatches)
        terms = split(merge(trainable, frozen), parts)
        differentiate = _differentiate(terms.loss_fn)

        def microbatch_step(total: dict, inputs: Any) -> tuple[dict, Metrics]:
            gradient, metrics = differentiate(trainable, frozen, inputs)
            return jax.tree.map(jnp.add, total, gradient), metrics

        gradient, metrics = jax.lax.scan(microbatch_step, jax.tree.map(jnp.zeros_like, trainable), terms.inputs)
        return gradient, jax.tree.map(partial(jnp.sum, axis=0), metrics) | terms.metrics

    return _differentiate(loss_fn) if microbatches == 1 else accumulate


def _differentiate(loss_fn: LossFn) -> Callable[[dict, dict, Any], tuple[dict, Metrics]]:
    def loss(trainable: dict, frozen: dict, batch: Any) -> tuple[Array, Metrics]:
        loss, metrics = loss_fn(merge(trainable, frozen), batch)
        return loss, {"loss": loss} | metrics

    return jax.grad(loss, has_aux=True)


def _mean_terms(loss_fn: LossFn, count: int, params: dict, microbatches: Any) -> Terms:
    def share(value: Array) -> Array:
        return value / count if jnp.issubdtype(value.dtype, jnp.inexact) else value

    def term(params: dict, microbatch: Any) -> tuple[Array, Metrics]:
        loss, metrics = loss_fn(params, microbatch)
        return share(loss), jax.tree.map(share, metrics)

    return Terms(term, microbatches, {})


def split_groups(x: Array, count: int) -> Array:
    """Reshapes [G, ...] to [count, G / count, ...]; every device keeps its groups."""
    return _regroup(x, (_group_shards(), count, -1, *x.shape[1:]), (count, -1, *x.shape[1:]), mesh_axes(None, "group"))


def join_groups(x: Array) -> Array:
    """Reshapes [count, G / count, ...] to [G, ...], the inverse of `split_groups`."""
    return _regroup(x, (len(x), _group_shards(), -1, *x.shape[2:]), (-1, *x.shape[2:]), mesh_axes("group"))


def _group_shards() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def _regroup(x: Array, by_device: tuple[int, ...], shape: tuple[int, ...], spec: PartitionSpec) -> Array:
    """Swaps the first two axes of `by_device`, then takes on `shape`."""
    x = x.reshape(by_device).swapaxes(0, 1).reshape(shape)
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)
