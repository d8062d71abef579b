"""The parameters as decoding reads them."""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike


class Weights(NamedTuple):
    """Parameters for decoding: each decoder layer's own, and all others. See Qwen2.extend."""

    layers: tuple[dict[str, Any], ...]
    rest: dict[str, Any]


@partial(jax.jit, static_argnums=1)
def decoding_weights(params: dict[str, Any], dtype: DTypeLike) -> Weights:
    """Copies of the parameters in the type that they are computed with; norms stay in theirs.

    The decoder's are in memory twice while `params` is kept.
    """

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf if "norm" in jax.tree_util.keystr(path) else leaf.astype(dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    stack = params["llm"]["layers"]
    count = len(jax.tree.leaves(stack)[0])
    layers = tuple(jax.tree.map(lambda leaf, index=index: leaf[index], stack) for index in range(count))
    return Weights(layers, params | {"llm": {name: part for name, part in params["llm"].items() if name != "layers"}})
