"""AdamW and Muon with the schedule of Appendix C.3."""

import optax
from flax import traverse_util

from omnivinci_jax.settings import OptimizerConfig


def learning_rate(settings: OptimizerConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Linear warm-up over the first share of the steps to `peak`, then cosine to zero (Appendix C.3)."""
    warmup = max(1, round(settings.warmup * steps))
    peak = settings.learning_rate if peak is None else peak
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def make_optimizer(settings: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradient clipping by the global norm, if any, then AdamW, or Muon for kernels and AdamW for the rest."""
    schedule = learning_rate(settings, steps)
    adam = dict(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    if settings.name == "adamw":
        update = optax.adamw(schedule, weight_decay=settings.weight_decay, mask=_decayed, **adam)
    else:
        update = optax.contrib.muon(
            schedule,
            weight_decay=settings.weight_decay,
            adam_learning_rate=learning_rate(settings, steps, settings.adam_learning_rate),
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            eps=settings.eps,
            muon_weight_dimension_numbers=muon_dimensions,
        )
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(clip, update)


def muon_dimensions(params: dict) -> dict:
    """Which axes of which parameters are a matrix: those of hidden kernels; a stack of layers is a batch of matrices.

    Left to their rank alone, stacked norms would get Muon and stacked kernels Adam. The output head stays with Adam,
    as the embedding does.
    """

    def dimensions(path: tuple[str, ...], leaf) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1] != "kernel" or "lm_head" in path:
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: dimensions(path, leaf) for path, leaf in flat.items()})


def _decayed(params: dict) -> dict:
    """Weight decay reaches kernels, adapters and embeddings, not biases and norms."""
    names = ("kernel", "embedding", "lora_a", "lora_b")
    return traverse_util.path_aware_map(lambda path, _: path[-1] in names, params)
