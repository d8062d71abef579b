from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnivinci_jax.models.attention import apply_rope, attention, gather_heads, rope_cos_sin, share_heads
from omnivinci_jax.models.attention_kernels import pallas_attention, splash_attention, xla_attention


def qkv(batch, length, heads, kv_heads, width, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, length, n, width)), jnp.float32) for n in (heads, kv_heads, kv_heads)]


def reference(q, k, v, causal, segment_ids):
    """Computes attention one query at a time, in float64."""
    q, k, v = (np.asarray(x) for x in (q, k, v))
    segment_ids = None if segment_ids is None else np.asarray(segment_ids)
    out = np.zeros(q.shape)
    per_key_head = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = np.ones(q.shape[1], bool) if segment_ids is None else segment_ids[b] == segment_ids[b, t]
        if causal:
            seen = seen & (np.arange(q.shape[1]) <= t)
        scores = k[b, seen, h // per_key_head].astype(np.float64) @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, seen, h // per_key_head]
    return out


@pytest.mark.parametrize("length,heads", [(1, (4, 4)), (13, (6, 2)), (8, (3, 1))])
@pytest.mark.parametrize("causal", [False, True])
def test_is_softmax_attention(causal, length, heads):
    run = jax.jit(partial(attention, causal=causal))

    @settings(deadline=None, max_examples=5)
    @given(seed=st.integers(0, 1000), segments=st.integers(1, 4))
    def check(seed, segments):
        q, k, v = qkv(2, length, *heads, 4, seed)
        segment_ids = jnp.asarray(np.random.default_rng(seed).integers(0, segments, (2, length)))
        np.testing.assert_allclose(
            run(q, k, v, segment_ids=segment_ids), reference(q, k, v, causal, segment_ids), atol=2e-6
        )

    check()


@pytest.mark.parametrize("causal", [False, True])
def test_without_segments_a_row_is_one_segment(causal):
    q, k, v = qkv(2, 9, 2, 2, 4)
    np.testing.assert_allclose(attention(q, k, v, causal=causal), reference(q, k, v, causal, None), atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_segments_match_separate_rows(causal):
    lengths, q_k_v = (7, 4, 6), qkv(1, 20, 4, 2, 8)
    segment_ids = jnp.asarray(np.repeat([1, 2, 3, 0], [*lengths, 3])[None])
    packed = attention(*q_k_v, causal=causal, segment_ids=segment_ids)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = attention(*(x[:, part] for x in q_k_v), causal=causal)
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-6)
        start += length


def test_padding_has_no_effect_and_no_nan():
    q, k, v = qkv(1, 9, 2, 1, 4)
    segment_ids = jnp.array([[1] * 5 + [0] * 4])

    def loss(q, k, v):
        return (attention(q, k, v, causal=True, segment_ids=segment_ids)[:, :5] ** 2).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.all(gradient[:, 5:] == 0) and np.any(gradient[:, :5] != 0)
    assert np.isfinite(attention(q, k, v, causal=True, segment_ids=segment_ids)).all()


def test_large_scores_do_not_overflow():
    q, k, v = qkv(1, 6, 2, 2, 4)
    out = attention(100 * q, 100 * k, v, causal=True)
    np.testing.assert_allclose(out, reference(100 * q, 100 * k, v, True, None), atol=1e-4)


def test_bfloat16_comes_back_as_bfloat16_from_a_float32_softmax():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in qkv(1, 64, 2, 2, 16))
    out = attention(q, k, v, causal=True)
    assert out.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x, np.float32) for x in (q, k, v)), True, None)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2e-2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [pallas_attention, splash_attention])
def test_flash_kernels_match_attention_on_packed_rows_with_padding(kernel, causal):
    """Runs interpreted; the length is not a multiple of a block, and a segment crosses blocks."""
    q, k, v = qkv(2, 300, 2, 1, 16)
    segments = np.repeat([1, 2, 0], [170, 100, 30]), np.repeat([1, 2, 3], [20, 130, 150])
    segment_ids = jnp.asarray(np.stack(segments))
    real = (segment_ids > 0)[..., None, None]

    def loss(function, q, k, v):
        out = function(q, k, v, segment_ids, causal=causal) * real
        return (out**2).sum(), out

    grad = partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    gradients, out = grad(partial(loss, partial(kernel, interpret=True)))(q, k, v)
    np.testing.assert_allclose(out, reference(q, k, v, causal, segment_ids) * real, atol=5e-6)
    expected, _ = grad(partial(loss, xla_attention))(q, k, v)
    for ours, plain in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("kernel", [pallas_attention, splash_attention])
def test_flash_kernels_without_segments_hide_their_own_padding(kernel):
    q, k, v = qkv(1, 140, 2, 2, 16)
    out = kernel(q, k, v, None, causal=False, interpret=True)
    np.testing.assert_allclose(out, reference(q, k, v, False, None), atol=5e-6)


@settings(deadline=None, max_examples=30)
@given(kv_heads=st.integers(1, 6), per_key=st.integers(1, 7), shares=st.integers(1, 12))
def test_shared_heads_match_all_heads_on_one_device(kv_heads, per_key, shares):
    """28 heads of 4 keys on 8 devices, 2 keys on 4, ...: each slice alone gives its heads' output."""
    q, k, v = qkv(1, 5, kv_heads * per_key, kv_heads, 2)
    split = [np.split(x, shares, axis=2) for x in share_heads(q, k, v, shares)]
    parts = [reference(*own, True, None) for own in zip(*split, strict=True)]
    out = gather_heads(jnp.asarray(np.concatenate(parts, axis=2)), kv_heads * per_key, kv_heads, shares)
    np.testing.assert_allclose(out, reference(q, k, v, True, None), atol=1e-6)


def test_rope_depends_only_on_distances():
    q, k, _ = qkv(1, 5, 2, 2, 8)
    scores = []
    for start in (0, 1000):
        rope = rope_cos_sin(jnp.arange(start, start + 5)[None], 8, 10_000.0)
        scores.append(np.einsum("bthd,bshd->bhts", apply_rope(q, *rope), apply_rope(k, *rope)))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
    assert not np.allclose(scores[0], np.einsum("bthd,bshd->bhts", q, k), atol=1e-1)
