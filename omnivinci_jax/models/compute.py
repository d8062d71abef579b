"""How the model is computed: settings that do not change its parameters, passed on by every module."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from omnivinci_jax.models.attention_kernels import Implementation

Remat = Literal["none", "full", "dots"]


@dataclass(frozen=True)
class Compute:
    """How the model is computed.

    dtype: type of activations and products; parameters may have another type.
    tower_remat, decoder_remat: what the backward pass recomputes (`layers.layer_stack`); OmniAlignNet follows the
        decoder.
    attention: the attention kernel (models/attention_kernels.py).
    """

    dtype: DTypeLike = jnp.float32
    tower_remat: Remat = "none"
    decoder_remat: Remat = "none"
    attention: Implementation = "xla"
