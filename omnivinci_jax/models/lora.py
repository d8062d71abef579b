"""LoRA: low-rank adapters beside the kernels of dense layers, in the same parameter tree.

Beside the kernel [..., in, out] of an adapted layer are `lora_a` [..., in, rank], `lora_b` [..., rank, out] and
`lora_scale` [...]; the dots are the layers of a scanned stack. The dense layer (models/layers.py) uses them where they
are, so nothing else of the model knows of them.
"""

import math
import re

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array

from omnivinci_jax.errors import ConfigError

ADAPTER = ("lora_a", "lora_b", "lora_scale")


def add_adapters(boxed: dict, rank: int, alpha: float, targets: tuple[str, ...], key: Array) -> dict:
    """Parameters in their boxes, with new adapters that add nothing yet; to be traced.

    Args:
        boxed: what `initialization.boxed_params` returns.
        targets: regular expressions over paths of dense kernels.

    Raises:
        ConfigError: an expression that matches no dense kernel.
    """
    flat = traverse_util.flatten_dict(boxed, sep="/")
    for number, path in enumerate(_targeted(flat, targets)):
        kernel, module = flat[path], path.removesuffix("kernel")
        *stack, rows, columns = kernel.value.shape
        *names, row_name, column_name = kernel.names
        bound = 1 / math.sqrt(rows)  # PEFT's, which is that of torch's linear layers
        a = jax.random.uniform(jax.random.fold_in(key, number), (*stack, rows, rank), jnp.float32, -bound, bound)
        for name, value, axes in (
            ("lora_a", a, (*names, row_name, None)),
            ("lora_b", jnp.zeros((*stack, rank, columns)), (*names, None, column_name)),
            ("lora_scale", jnp.full(stack, alpha / rank), tuple(names)),
        ):
            flat[module + name] = nn.LogicallyPartitioned(value, axes)
    return traverse_util.unflatten_dict(flat, sep="/")


def without_adapters(params: dict) -> dict:
    """The tree of the model itself."""
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if path[-1] not in ADAPTER})


def merge_adapters(params: dict, adapters: dict, scale: float) -> dict:
    """A model's parameters, in their own types, whose kernels do alone what they do with adapters beside them.

    Args:
        params: without adapters.
        adapters: `lora_a` and `lora_b` alone, as training saves them.
        scale: alpha / rank.
    """
    flat, low_rank = (traverse_util.flatten_dict(tree) for tree in (params, adapters))
    for path in {path[:-1] for path in low_rank}:
        kernel, a, b = flat[*path, "kernel"], low_rank[*path, "lora_a"], low_rank[*path, "lora_b"]
        added = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[*path, "kernel"] = (kernel.astype(jnp.float32) + added).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def _targeted(flat: dict[str, nn.LogicallyPartitioned], targets: tuple[str, ...]) -> list[str]:
    """Paths of dense kernels that an expression matches: a convolution's has a third axis."""
    kernels = [
        path
        for path, leaf in flat.items()
        if path.endswith("/kernel") and leaf.value.ndim - leaf.names.count("layers") == 2
    ]
    for pattern in targets:
        if not any(re.fullmatch(pattern, path) for path in kernels):
            raise ConfigError(
                f"config.lora.targets: {pattern!r} matches no dense kernel; paths look like {kernels[-1]}"
            )
    return [path for path in kernels if any(re.fullmatch(pattern, path) for pattern in targets)]
