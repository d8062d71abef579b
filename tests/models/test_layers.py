import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense, Embedding, layer_norm, layer_stack, rms_norm


class Block(nn.Module):
    """A layer for layer_stack: a dense residual, scaled by an argument that all layers share."""

    @nn.compact
    def __call__(self, x, scale):
        y = layer_norm(1e-5, jnp.float32, "norm")(x)
        return x + scale * jnp.tanh(Dense(x.shape[-1], ("embed", "mlp"), name="fc")(y)), None


def test_layer_norm_is_exact_far_from_zero():
    x = (1e4 + np.random.default_rng(0).normal(size=(4, 64))).astype(np.float32)
    module = layer_norm(1e-5, jnp.float32, "norm")
    out = module.apply(module.init(jax.random.key(0), x), x)
    x = x.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, expected, atol=2e-3)  # the mean itself rounds at 1e4; the fast variance is off by 1


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_norms_of_bfloat16_have_float32_statistics(norm):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 512)) * 3, jnp.bfloat16)
    module, exact = norm(1e-6, jnp.bfloat16, "norm"), norm(1e-6, jnp.float32, "norm")
    variables = module.init(jax.random.key(0), x)
    out = module.apply(variables, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.apply(variables, x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_dense_is_a_product_with_a_named_kernel():
    dense = Dense(3, ("embed", "mlp"))
    x = jnp.arange(8.0).reshape(2, 1, 4)
    boxed = dense.init(jax.random.key(0), x)["params"]
    assert boxed["kernel"].names == ("embed", "mlp") and boxed["bias"].names == ("mlp",)
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.array([0.0, 1.0, 2.0])}
    np.testing.assert_allclose(dense.apply({"params": params}, x)[:, 0], [[6, 7, 8], [22, 23, 24]])


def test_dense_accumulates_in_out_dtype():
    x = jnp.full((1, 4096), 1 + 2**-7, jnp.bfloat16)
    params = {"kernel": jnp.ones((4096, 1))}
    out = Dense(1, ("embed", "vocab"), Compute(jnp.bfloat16), use_bias=False, out_dtype=jnp.float32).apply(
        {"params": params}, x
    )
    assert out.dtype == jnp.float32 and out[0, 0] == 4096 + 32  # a bfloat16 sum would lose the small terms


def test_embedding_outside_its_table_is_nan():
    embedding = Embedding(4, 2, ("vocab", "embed"))
    variables = {"params": {"embedding": jnp.arange(8.0).reshape(4, 2)}}
    out = embedding.apply(variables, jnp.array([3, 4]))
    np.testing.assert_array_equal(out, [[6, 7], [np.nan, np.nan]])


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_a_stack_runs_its_layers_in_order(remat):
    x = jax.random.normal(jax.random.key(1), (2, 8))
    stack = layer_stack(Block, 3, remat)()
    boxed = stack.init(jax.random.key(0), x, 0.5)["params"]
    assert boxed["fc"]["kernel"].names == ("layers", "embed", "mlp")
    params = nn.unbox(boxed)
    assert not np.allclose(params["fc"]["kernel"][0], params["fc"]["kernel"][1])

    def in_turn(params):
        y = x
        for n in range(3):
            y, _ = Block().apply({"params": jax.tree.map(lambda stacked, n=n: stacked[n], params)}, y, 0.5)
        return (y**2).sum()

    def scanned(params):
        return (stack.apply({"params": params}, x, 0.5)[0] ** 2).sum()

    expected, actual = (jax.jit(jax.value_and_grad(f))(params) for f in (in_turn, scanned))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


def test_remat_recomputes_what_its_name_says():
    x = jnp.ones((2, 8))

    def products(remat):
        stack = layer_stack(Block, 3, remat)()
        params = nn.unbox(stack.init(jax.random.key(0), x, 0.5)["params"])
        gradient = jax.grad(lambda params: (stack.apply({"params": params}, x, 0.5)[0] ** 2).sum())
        return jax.jit(gradient).lower(params).as_text().count("stablehlo.dot_general ")

    assert products("none") == products("dots") == 3  # forward, and the gradients of input and kernel
    assert products("full") == 4


def test_gradients_of_products_match_jax_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)
    params = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32), "bias": jnp.ones(6)}

    def loss(params, x, product):
        return (jnp.tanh(product(params, x)) ** 2).sum()

    def plain(params, x):
        return jnp.einsum("bti,io->bto", x, params["kernel"]) + params["bias"]

    def dense(params, x, dtype=jnp.float32):
        return Dense(6, ("embed", "mlp"), Compute(dtype)).apply({"params": params}, x)

    expected, actual = (jax.grad(loss, (0, 1))(params, x, product) for product in (plain, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)
    half = jax.grad(loss)(params, x, lambda params, x: dense(params, x, jnp.bfloat16))
    assert half["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(half["kernel"], expected[0]["kernel"], atol=0.1)
