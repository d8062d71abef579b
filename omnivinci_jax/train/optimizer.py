"""AdamW and Muon with the schedule of Appendix C.3."""

from functools import partial
from typing import Any, cast

import jax
import optax

from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.initialization import parameter_roles
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.settings import OptimizerConfig


def learning_rate(settings: OptimizerConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Returns linear warm-up to `peak` over the fraction `warmup` of the steps, then cosine to zero (Appendix C.3)."""
    warmup = max(1, round(settings.warmup * steps))
    peak = settings.learning_rate if peak is None else peak
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def make_optimizer(settings: OptimizerConfig, steps: int, model: OmniVinciConfig) -> optax.GradientTransformation:
    """Returns AdamW, or Muon for kernels with AdamW for the rest, after any clipping by the global gradient norm.

    The roles of the parameters (models/parameters.py) say which of them decay and which get Muon.
    """
    schedule = learning_rate(settings, steps)
    b1, b2, eps = settings.b1, settings.b2, settings.eps
    if settings.name == "adamw":
        mask = partial(decay_mask, model)
        update = optax.adamw(schedule, b1, b2, eps, weight_decay=settings.weight_decay, mask=mask)
    else:
        update = optax.contrib.muon(
            schedule,
            weight_decay=settings.weight_decay,
            adam_learning_rate=learning_rate(settings, steps, settings.adam_learning_rate),
            adam_b1=b1,
            adam_b2=b2,
            eps=eps,
            muon_weight_dimension_numbers=cast("Any", partial(muon_dimensions, model)),
        )
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(clip, update)


def decay_mask(model: OmniVinciConfig, params: dict) -> dict:
    """Returns, for each parameter, whether weight decay applies to it."""
    return jax.tree.map(lambda role: role.decay, parameter_roles(model, params))


def muon_dimensions(model: OmniVinciConfig, params: dict) -> dict:
    """Returns the axes of the matrices that Muon orthogonalizes; None for parameters that Adam updates.

    Optax's default chooses by rank, which would give Muon to stacked norms and Adam to stacked kernels.
    """

    def dimensions(role: Role, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:  # optax masks Adam's leaves
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if role.muon else None

    return jax.tree.map(dimensions, parameter_roles(model, params), params)
