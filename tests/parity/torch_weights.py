"""Converts state dicts with merged checkpoint names to our parameter tree, with conversion's table."""

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from conversion.mapping import tensors
from omnivinci_jax.config import OmniVinciConfig
from omnivinci_jax.models.initialization import parameter_shapes


def params_from_torch(state: Mapping[str, np.ndarray], config: OmniVinciConfig) -> dict:
    """Returns the leaves of the tensors in `state`; every tensor must be in the table and have its shape."""
    shapes = parameter_shapes(config)
    leaves: dict[str, np.ndarray] = {}
    used = set()
    for tensor in tensors(config, shapes):
        if tensor.name in state:
            used.add(tensor.name)
            assert state[tensor.name].shape == tensor.shape, tensor
            leaf = leaves.setdefault(tensor.path, np.empty(shapes[tensor.path], np.float32))
            leaf[... if tensor.index is None else tensor.index] = tensor.transform.to_tree(state[tensor.name])
    assert used == set(state), sorted(set(state) - used)
    return unflatten_dict(leaves, sep="/")
