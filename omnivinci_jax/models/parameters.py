"""Axes and role of each parameter, declared where the parameter is created.

A new parameter comes in a box (`Parameter`) that names its logical axes (models/sharding.py) and its role.
`initialization.parameter_roles` gives the roles of a whole tree of parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import flax.linen as nn
from flax import struct
from jaxtyping import Array

Initializer = Callable[..., Array]


@dataclass(frozen=True)
class Role:
    """How a parameter is used.

    decay: weight decay applies to it.
    muon: its last two axes are a matrix that Muon orthogonalizes; earlier axes are a batch.
    adaptable: LoRA can put an adapter beside it.
    adapter: it is a factor of an adapter, and so trains while everything else is frozen.
    multiplies: it multiplies activations in a matrix product, so it counts in FLOPs.
    cast_frozen: training stores it in the compute type while it is frozen.
    cast_decoding: decoding copies it in the compute type.
    """

    decay: bool = False
    muon: bool = False
    adaptable: bool = False
    adapter: bool = False
    multiplies: bool = False
    cast_frozen: bool = True
    cast_decoding: bool = True


PLAIN = Role()  # biases, learned queries, logit scales
KERNEL = Role(decay=True, muon=True, adaptable=True, multiplies=True)
HEAD = replace(KERNEL, muon=False)  # Adam updates the output head, as it does the embedding
CONVOLUTION = replace(KERNEL, adaptable=False)
TABLE = Role(decay=True)
TIED_HEAD = replace(TABLE, multiplies=True)  # an embedding table that is also the output head
NORM = Role(cast_decoding=False)
ADAPTER = Role(decay=True, adapter=True, multiplies=True)
# Multiplies no activations, and is never cast: bfloat16 would round alpha / rank.
ADAPTER_SCALE = Role(cast_frozen=False, cast_decoding=False)


class Parameter(nn.LogicallyPartitioned):
    """The box of a new parameter: its value, the logical names of its axes, and its role."""

    role: Role = struct.field(pytree_node=False, default=PLAIN)


def declare(init: Initializer, axes: tuple[str | None, ...], role: Role = PLAIN) -> Callable[..., Any]:
    """Wraps an initializer to return a `Parameter` with these logical axes and role; `Module.param` unboxes it."""

    @wraps(init)
    def boxed(*args: object, **kwargs: object) -> Parameter:
        return Parameter(init(*args, **kwargs), axes, role=role)

    return boxed
