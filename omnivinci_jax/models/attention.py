"""Attention over packed rows, rotary positions, and the self-attention of the encoders."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from omnivinci_jax.models.layers import Dense

CAUSAL_BLOCKS = 4
MASKED = -1e30  # finite, so that a row's maximum is never -inf and no NaN can start


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H D"]:
    """Scaled dot-product attention; softmax in float32; each key/value head serves H / K query heads.

    A slot sees the slots of its own segment (the later ones too unless `causal`). Padding is segment 0 and so sees
    padding alone. For three slots of segment 1, two of segment 2 and one of padding, `causal`:

        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        . . . 1 . .
        . . . 1 1 .
        . . . . . 1

    Causal queries are taken in a few blocks, each against the keys up to its end: what a mask would hide is mostly
    never computed (5/8 of the work with 4 blocks). Where slots are sharded over `context` one block keeps them so.
    """
    length = q.shape[1]
    sharded = jax.sharding.get_abstract_mesh().shape.get("context", 1) > 1
    block = -(-length // CAUSAL_BLOCKS) if causal and not sharded else max(length, 1)
    k, v = (x.transpose(0, 2, 3, 1) for x in (k, v))  # [B, K, D, T]: the layout both gradients are fastest in
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        keys = end if causal else length
        mask = _mask(start, end, keys, causal, segment_ids)
        outputs.append(_attend(q[:, start:end], k[..., :keys], v[..., :keys], mask))
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def _mask(start: int, end: int, keys: int, causal: bool, segment_ids: Array | None) -> Array | None:
    """Which of the first `keys` keys the queries start...end see: [B or 1, end - start, keys], None for all."""
    mask = None
    if causal:
        mask = (np.arange(start, end)[:, None] >= np.arange(keys))[None]
    if segment_ids is not None:
        same = segment_ids[:, start:end, None] == segment_ids[:, None, :keys]
        mask = same if mask is None else same & mask
    return mask


def _attend(
    q: Float[Array, "B t H D"], k: Float[Array, "B K D s"], v: Float[Array, "B K D s"], mask: Array | None
) -> Float[Array, "B t H D"]:
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    # The query heads of one key head become rows of one matrix product.
    q = (q * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    logits = jnp.einsum("bkgtd,bkds->bkgts", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    # Softmax that divides after the product with v: width numbers a row instead of one a key.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bkgts,bkds->bkgtd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def rope_cos_sin(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine of position / theta^(2i / head_dim) for the planes i of a head, float32."""
    frequencies = jnp.asarray(theta ** -(np.arange(0, head_dim, 2) / head_dim), jnp.float32)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T H D"], cos: Float[Array, "B T 1 half"], sin: Float[Array, "B T 1 half"]
) -> Float[Array, "B T H D"]:
    """Rotates channel i with channel i + D/2 (the half rotation of Hugging Face), in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class SelfAttention(nn.Module):
    """Bidirectional multi-head self-attention with biases, as in both towers and OmniAlignNet.

    key_bias: false in Whisper, whose key projection has none.
    """

    num_heads: int
    key_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], segment_ids: Int[Array, "B T"] | None = None) -> Float[Array, "B T C"]:
        """Attends within each segment, or over the whole length without `segment_ids`."""
        batch, length, width = x.shape

        def heads(name: str, use_bias: bool = True) -> Float[Array, "B T H D"]:
            x_heads = Dense(width, ("embed", "heads"), use_bias, self.dtype, name=name)(x)
            return x_heads.reshape(batch, length, self.num_heads, width // self.num_heads)

        x = attention(
            heads("q_proj"), heads("k_proj", self.key_bias), heads("v_proj"), causal=False, segment_ids=segment_ids
        )
        return Dense(width, ("heads", "embed"), dtype=self.dtype, name="out_proj")(x.reshape(batch, length, width))
