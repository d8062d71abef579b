"""Attention over packed rows, rotary positions, and the self-attention of the encoders."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from omnivinci_jax.models.attention_kernels import IMPLEMENTATIONS, Implementation
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense
from omnivinci_jax.models.sharding import mesh_axes


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B T"] | None = None,
    implementation: Implementation = "xla",
    batch_axis: str = "group",
) -> Float[Array, "B T H D"]:
    """Computes scaled dot-product attention, softmax in float32; each key/value head serves H / K query heads.

    A slot attends to the slots of its own segment; if `causal`, not to later ones. Padding is segment 0, so it attends
    only to padding. Example, `causal`: three slots of segment 1, two of segment 2, one of padding:

        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        . . . 1 . .
        . . . 1 1 .
        . . . . . 1

    On a mesh, B is sharded as the logical axis `batch_axis`, slots over `context` and heads over `tensor`, unless B
    takes those axes. Where slots are sharded, one all-to-all gives every device all slots of some of its heads, and
    another brings the output back, so no device ever holds all keys and values.
    """
    kernel = partial(IMPLEMENTATIONS[implementation], causal=causal)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q, k, v, segment_ids)
    spec = mesh_axes(batch_axis, "length", "heads", None)
    shares = math.prod(mesh.shape[axis] for axis in spec[1:3] if axis)
    if spec[2] and k.shape[2] % mesh.shape[spec[2]]:  # then every device holds all key/value heads
        whole = PartitionSpec(*spec[:2])
        k, v = (jax.lax.with_sharding_constraint(x, whole) for x in (k, v))
    if spec[1]:
        kernel = _over_all_slots(kernel, spec[1])
    kernel = jax.shard_map(kernel, in_specs=(spec, spec, spec, PartitionSpec(spec[0])), out_specs=spec, check_vma=False)
    out = kernel(*share_heads(q, k, v, shares), segment_ids)
    return gather_heads(out, q.shape[2], k.shape[2], shares)


def _over_all_slots(kernel: Callable[..., Array], axis: str) -> Callable[..., Array]:
    """Runs `kernel` on [B, T, H / n, D] when each of n devices along a mesh axis holds [B, T / n, H, D]."""

    def run(q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
        q, k, v = (jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v))
        return jax.lax.all_to_all(kernel(q, k, v, segment_ids), axis, split_axis=1, concat_axis=2, tiled=True)

    return run


def share_heads(
    q: Float[Array, "B T H D"], k: Float[Array, "B T K D"], v: Float[Array, "B T K D"], shares: int
) -> tuple[Float[Array, "B T H2 D"], Float[Array, "B T K2 D"], Float[Array, "B T K2 D"]]:
    """Orders heads so that each of `shares` equal slices of q, k and v holds query heads and their own key heads.

    Where there are more shares than key heads, copies the key heads and splits the query heads of each among the
    copies, padded with zeros: 28 heads on 8 devices become 32.
    """
    per_key, kv_shares = q.shape[2] // k.shape[2], math.gcd(k.shape[2], shares)
    copies = shares // kv_shares
    q = rearrange(q, "b t (k g) d -> b t k g d", g=per_key)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, -per_key % copies), (0, 0)))
    q = rearrange(q, "b t (s k) (c g) d -> b t (s c k g) d", s=kv_shares, c=copies)
    k, v = (repeat(x, "b t (s k) d -> b t (s c k) d", s=kv_shares, c=copies) for x in (k, v))
    return q, k, v


def gather_heads(out: Float[Array, "B T H2 D"], heads: int, kv_heads: int, shares: int) -> Float[Array, "B T H D"]:
    """Inverts `share_heads` for q."""
    kv_shares = math.gcd(kv_heads, shares)
    out = rearrange(
        out, "b t (s c k g) d -> b t (s k) (c g) d", s=kv_shares, c=shares // kv_shares, k=kv_heads // kv_shares
    )
    return rearrange(out[:, :, :, : heads // kv_heads], "b t k g d -> b t (k g) d")


def rope_cos_sin(
    positions: Int[Array, "B T"], head_dim: int, theta: float
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Returns the cosine and sine of position / theta^(2i / head_dim) for the planes i of a head, float32."""
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
    batch_axis: logical name of axis 0.
    """

    num_heads: int
    batch_axis: str
    compute: Compute = Compute()
    key_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], segment_ids: Int[Array, "B T"] | None = None) -> Float[Array, "B T C"]:
        """Attends within each segment, or over the whole length without `segment_ids`."""
        batch, length, width = x.shape

        def heads(name: str, *, use_bias: bool = True) -> Float[Array, "B T H D"]:
            x_heads = Dense(width, ("embed", "heads"), self.compute, use_bias=use_bias, name=name)(x)
            return x_heads.reshape(batch, length, self.num_heads, width // self.num_heads)

        x = attention(
            heads("q_proj"),
            heads("k_proj", use_bias=self.key_bias),
            heads("v_proj"),
            causal=False,
            segment_ids=segment_ids,
            implementation=self.compute.attention,
            batch_axis=self.batch_axis,
        )
        return Dense(width, ("heads", "embed"), self.compute, name="out_proj")(x.reshape(batch, length, width))
