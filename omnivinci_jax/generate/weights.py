"""The parameters in the form that decoding reads."""

from functools import partial
from typing import Any, NamedTuple

import jax

from omnivinci_jax.models.initialization import parameter_roles
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.models.parameters import Role
from omnivinci_jax.models.weights import Weight, cast


class Weights(NamedTuple):
    """Parameters for decoding: those of each decoder layer, and the rest. See Qwen2.extend."""

    layers: tuple[dict[str, Any], ...]
    rest: dict[str, Any]


@partial(jax.jit, static_argnums=0)
def decoding_weights(model: OmniVinci, params: dict[str, Any]) -> Weights:
    """Copies the parameters in the compute type, except those whose role keeps their stored type.

    The decoder's parameters are in memory twice while `params` is kept.
    """

    def store(role: Role, leaf: jax.Array | Weight) -> jax.Array | Weight:
        return cast(leaf, model.compute.dtype) if role.cast_decoding else leaf

    params = jax.tree.map(store, parameter_roles(model.config, params), params)
    stack = params["llm"]["layers"]
    count = len(jax.tree.leaves(stack)[0])
    layers = tuple(jax.tree.map(lambda leaf, index=index: leaf[index], stack) for index in range(count))
    return Weights(layers, params | {"llm": {name: part for name, part in params["llm"].items() if name != "layers"}})
