"""Attention on one device: plain XLA, and JAX's flash attention kernels for GPUs and TPUs.

All take q [B, T, H, D], k and v [B, T, K, D] and segment_ids [B, T] or None, and return [B, T, H, D];
models/attention.py explains which slots attend to which. `interpret` runs a kernel on any machine, slowly, for tests.
"""

from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Implementation = Literal["xla", "pallas", "splash"]

MASKED = -1e30  # finite, so that a row's maximum is never -inf, which would give NaN
_CAUSAL_BLOCKS = 4
_GPU_BLOCK = 128
_TPU_BLOCKS = (512, 256, 128)


def xla_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    causal: bool,
) -> Float[Array, "B T H D"]:
    """Computes attention in plain XLA; holds the scores of a quarter of the queries at once (of all unless `causal`).

    Causal queries are processed in blocks, each against the keys up to its own end, so that most masked scores are
    never computed: 4 blocks do 5/8 of the work.
    """
    length = q.shape[1]
    block = -(-length // _CAUSAL_BLOCKS) if causal else max(length, 1)
    k, v = (x.transpose(0, 2, 3, 1) for x in (k, v))  # [B, K, D, T]: both gradients are fastest in this layout
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        keys = end if causal else length
        mask = _mask(start, end, keys, causal, segment_ids)
        outputs.append(_attend(q[:, start:end], k[..., :keys], v[..., :keys], mask))
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def _mask(start: int, end: int, keys: int, causal: bool, segment_ids: Array | None) -> Array | np.ndarray | None:
    """Returns the mask of queries start … end - 1 over the first `keys` keys: [B or 1, end - start, keys], or None."""
    mask = None
    if causal:
        mask = (np.arange(start, end)[:, None] >= np.arange(keys))[None]
    if segment_ids is not None:
        same = segment_ids[:, start:end, None] == segment_ids[:, None, :keys]
        mask = same if mask is None else same & mask
    return mask


def _attend(
    q: Float[Array, "B t H D"], k: Float[Array, "B K D s"], v: Float[Array, "B K D s"], mask: Array | np.ndarray | None
) -> Float[Array, "B t H D"]:
    out, _, total = partial_attention(q, k, v, mask)
    return normalize_softmax(out, total, v.dtype)


def partial_attention(
    q: Float[Array, "B t H D"],
    k: Float[Array, "B K D s"],
    v: Float[Array, "B K _ _"],
    mask: Array | np.ndarray | None,
    values: Literal["bkds", "bksd"] = "bkds",
) -> tuple[Float[Array, "B K G t D"], Float[Array, "B K G t"], Float[Array, "B K G t"]]:
    """Computes unnormalised attention to some of the keys: Σ v·exp(logit - m), m and Σ exp(logit - m), in float32.

    m is the largest logit. `mask` says which keys the queries see, [B or 1, t, s]; None for all. `values` is the layout
    of v: keys last (as in k) is the fastest for many queries, channels last for a single one.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    # The query heads of one key head become rows of one matrix product.
    q = (q * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    logits = jnp.einsum("bkgtd,bkds->bkgts", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    largest = jax.lax.stop_gradient(logits.max(axis=-1))
    weights = jnp.exp(logits - largest[..., None])
    out = jnp.einsum(f"bkgts,{values}->bkgtd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out, largest, weights.sum(axis=-1)


def normalize_softmax(
    out: Float[Array, "B K G t D"], total: Float[Array, "B K G t"], dtype: DTypeLike
) -> Float[Array, "B t H D"]:
    """Divides the output of `partial_attention` over all keys by the sum of exponentials: D divisions a row, not T."""
    batch, kv_heads, groups, length, width = out.shape
    out = (out / total[..., None]).astype(dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * groups, width)


def pallas_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Runs JAX's flash attention in Pallas for GPUs; never holds all scores at once.

    cuDNN's kernel takes no segment ids, so packed rows would need a T x T mask.
    """
    from jax.experimental.pallas.ops.gpu import attention as gpu_attention  # here, because Pallas is slow to import

    length, width = q.shape[1], q.shape[-1]
    q, k, v, segment_ids = _pad_length(q, k, v, segment_ids, _GPU_BLOCK)
    k, v = (repeat(x, "b t k d -> b t (k g) d", g=q.shape[2] // x.shape[2]) for x in (k, v))
    blocks = gpu_attention.BlockSizes(**dict.fromkeys(gpu_attention.BlockSizes.__dataclass_fields__, _GPU_BLOCK // 2))
    out = cast("Array", gpu_attention.mha(q, k, v, segment_ids, width**-0.5, causal, blocks, interpret=interpret))
    return out[:, :length]


def splash_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Runs JAX's splash attention for TPUs; never holds all scores at once, and skips blocks that `causal` masks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    length, heads, width = q.shape[1:]
    # The largest block that pads by at most an eighth: 100,000 slots in blocks of 128 have more block indices than a
    # TPU's scalar memory holds.
    block = next((block for block in _TPU_BLOCKS if 8 * (-length % block) <= length), _TPU_BLOCKS[-1])
    q, k, v, segment_ids = _pad_length(q, k, v, segment_ids, block)
    padded = q.shape[1]
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((padded, padded))
    kernel = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        interpret=interpret,
    )
    segments = None if segment_ids is None else splash.SegmentIds(segment_ids, segment_ids)
    q, k, v = (x.swapaxes(1, 2) for x in (q * width**-0.5, k, v))
    out = cast("Array", jax.vmap(kernel)(q, k, v, segments))
    return out.swapaxes(1, 2)[:, :length]


def _pad_length(
    q: Array, k: Array, v: Array, segment_ids: Array | None, multiple: int
) -> tuple[Array, Array, Array, Array | None]:
    """Pads T to a multiple of `multiple`; the padding is a segment of its own."""
    batch, length = q.shape[:2]
    more = -length % multiple
    if not more:
        return q, k, v, segment_ids
    if segment_ids is None:
        segment_ids = jnp.zeros((batch, length), jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in (q, k, v))
    return q, k, v, jnp.pad(segment_ids, ((0, 0), (0, more)), constant_values=-1)


IMPLEMENTATIONS: dict[Implementation, Callable[..., Array]] = {
    "xla": xla_attention,
    "pallas": pallas_attention,
    "splash": splash_attention,
}


def choose_implementation(setting: Implementation | Literal["auto"], platform: str) -> Implementation:
    """Resolves a configuration's `attention` on a platform: "auto" is the platform's flash kernel, or plain XLA."""
    flash: dict[str, Implementation] = {"tpu": "splash", "gpu": "pallas"}
    return flash.get(platform, "xla") if setting == "auto" else setting
