"""LoRA: low-rank adapters beside the kernels of dense layers, in the same parameter tree.

Beside the kernel [..., in, out] of an adapted layer are `lora_a` [..., in, rank], `lora_b` [..., rank, out] and
`lora_scale` [...]; the dots are the layers of a scanned stack. The dense layer (models/layers.py) combines
them into one weight, so the rest of the model does not know about adapters.
"""

import math
import re
from typing import cast

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from omnivinci_jax.errors import ConfigError
from omnivinci_jax.models.parameters import ADAPTER, ADAPTER_SCALE, Parameter

ROLES = {"lora_a": ADAPTER, "lora_b": ADAPTER, "lora_scale": ADAPTER_SCALE}


def add_adapters(boxed: dict, rank: int, alpha: float, targets: tuple[str, ...], key: Array) -> dict:
    """Adds new adapters to boxed parameters, without changing the model's output yet; to be traced.

    Args:
        boxed: result of `initialization.boxed_params`.
        rank: width of the adapters.
        alpha: numerator of their scale alpha / rank.
        targets: regular expressions over paths of dense kernels.
        key: random key for lora_a.

    Raises:
        ConfigError: an expression that matches no dense kernel.
    """
    flat = cast("dict[str, Parameter]", traverse_util.flatten_dict(boxed, sep="/"))
    for number, path in enumerate(_targeted(flat, targets)):
        kernel, module = flat[path], path.rpartition("/")[0]
        *stack, rows, columns = kernel.value.shape
        *names, row_name, column_name = kernel.names
        bound = 1 / math.sqrt(rows)  # as PEFT, which uses the bound of torch's linear layers
        a = jax.random.uniform(jax.random.fold_in(key, number), (*stack, rows, rank), jnp.float32, -bound, bound)
        for name, value, axes in (
            ("lora_a", a, (*names, row_name, None)),
            ("lora_b", jnp.zeros((*stack, rank, columns)), (*names, None, column_name)),
            ("lora_scale", jnp.full(stack, alpha / rank), tuple(names)),
        ):
            flat[f"{module}/{name}"] = Parameter(value, axes, role=ROLES[name])
    return traverse_util.unflatten_dict(flat, sep="/")


def without_adapters(params: dict) -> dict:
    """Returns the parameters without adapters."""
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if path[-1] not in ROLES})


def merge_adapters(params: dict, adapters: dict, scale: float) -> dict:
    """Adds the adapters to their kernels: kernel + scale · a @ b. Parameters keep their types.

    Args:
        params: without adapters.
        adapters: `lora_a` and `lora_b` alone, as training saves them.
        scale: alpha / rank.
    """
    flat, low_rank = (
        cast("dict[tuple[str, ...], Array]", traverse_util.flatten_dict(tree)) for tree in (params, adapters)
    )
    for path in {path[:-1] for path in low_rank}:
        kernel, a, b = flat[*path, "kernel"], low_rank[*path, "lora_a"], low_rank[*path, "lora_b"]
        added = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[*path, "kernel"] = (kernel.astype(jnp.float32) + added).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def _targeted(flat: dict[str, Parameter], targets: tuple[str, ...]) -> list[str]:
    """Returns the paths of the dense kernels that an expression matches."""
    kernels = [path for path, box in flat.items() if box.role.adaptable]
    for pattern in targets:
        if not any(re.fullmatch(pattern, path) for path in kernels):
            raise ConfigError(
                f"config.lora.targets: {pattern!r} matches no dense kernel; paths look like {min(kernels)}"
            )
    return [path for path in kernels if any(re.fullmatch(pattern, path) for pattern in targets)]
