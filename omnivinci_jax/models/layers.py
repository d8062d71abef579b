"""The layers every part of the model is made of. Parameters are float32; `dtype` is what is computed in.

Logical axis names of parameters, which mesh/rules.py maps to mesh axes: `embed` a model width, `heads` and `kv_heads`
query and key/value heads times their width, `mlp` a hidden width, `vocab` rows of the vocabulary, `norm` a norm's
width, `position` rows of a table of positions, `layers` the layers of a scanned stack, None what is never sharded.
Of activations: `group` a batch's groups (and rows within), `length` slots, `media` the tiles or windows of all groups,
`item` those, or the slots, of one group.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

Initializer = Callable[..., Array]
Remat = Literal["none", "full", "dots"]

LECUN = nn.initializers.lecun_normal()

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("product"),
}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(
    x: Float[Array, "*batch in"],
    kernel: Float[Array, "in out"],
    axes: tuple[str | None, str | None],
    out_dtype: DTypeLike,
) -> Float[Array, "*batch out"]:
    """x @ kernel computed in the type of x; `axes` are the kernel's logical ones.

    Its own gradient rule, because JAX's rounds the kernel's gradient to the type of x, and makes it in a way that costs
    a training step on a CPU half as much time again (`_outer`).
    """
    return jnp.dot(x, _gathered(kernel, axes, x.dtype), preferred_element_type=out_dtype)


def _gathered(kernel: Float[Array, "in out"], axes: tuple, dtype: DTypeLike) -> Float[Array, "in out"]:
    """The kernel as it is computed with: whole along its model width, which fsdp and context share.

    Left to itself XLA multiplies what each device has of it and sums activations over devices, which are larger.
    """
    return _constrain(kernel.astype(dtype), _gathered_axes(axes))


def _gathered_axes(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    return tuple(None if axis == "embed" else axis for axis in axes)


def _constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
    """`x` shared over devices by its logical axes; as it is in a shard_map, where each device has what it needs."""
    if jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return x
    return nn.with_logical_constraint(x, axes)


def _product_forward(x: Array, kernel: Array, axes: tuple, out_dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel, axes, out_dtype), (x, kernel)


def _product_backward(
    axes: tuple, _out_dtype: DTypeLike, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    kernel_gradient = jax.lax.platform_dependent(x, gradient, cpu=_outer_on_cpu, default=_outer)
    # Summed first, then shared: asked for its share at once, XLA cuts x and the gradient by their width, where they are
    # cut by their length, and gathers them whole on the way.
    kernel_gradient = _constrain(_gathered(kernel_gradient, axes, kernel.dtype), axes)
    return jnp.dot(gradient, _gathered(kernel, axes, x.dtype).T), kernel_gradient


def _outer(x: Float[Array, "*batch in"], y: Float[Array, "*batch out"]) -> Float[Array, "in out"]:
    """The sum of outer products, in float32."""
    batch = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((batch, batch), ((), ())), preferred_element_type=jnp.float32)


def _outer_on_cpu(x: Float[Array, "*batch in"], y: Float[Array, "*batch out"]) -> Float[Array, "in out"]:
    """The same, the narrower operand first: XLA copies the first across. The barrier keeps it from turning them."""
    return _outer(x, y) if x.shape[-1] <= y.shape[-1] else jax.lax.optimization_barrier(_outer(y, x)).T


_product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """x @ kernel + bias on the last axis; owns every weight product, so adapters and quantized weights enter here.

    kernel: [in, features] with logical names `axes`; bias: [features], unless `use_bias` is false. Where the parameters
    have an adapter (models/lora.py), lora_a [in, rank] and lora_b [rank, features], its product is added.
    out_dtype: type the product is accumulated and returned in, where it is not `dtype` (logits: float32).
    """

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    out_dtype: DTypeLike | None = None
    kernel_init: Initializer = LECUN

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Multiplies by the kernel in `dtype`."""
        init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        x = checkpoint_name(self._multiply(x.astype(self.dtype), kernel), "product")
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            x = x + self.param("bias", init, (self.features,)).astype(x.dtype)
        return x

    def _multiply(self, x: Float[Array, "*batch in"], kernel: Float[Array, "in out"]) -> Float[Array, "*batch out"]:
        out_dtype = self.out_dtype or self.dtype
        product = _product(x, kernel, self.axes, out_dtype)
        if not self.has_variable("params", "lora_a"):
            return product
        a, b, scale = (self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale"))
        low_rank = _product(x, a, (self.axes[0], None), self.dtype)
        return product + _product(low_rank, scale * b, (None, self.axes[1]), out_dtype)


class Embedding(nn.Module):
    """A table of `num_embeddings` rows; an id outside it gives NaN rather than some other row."""

    num_embeddings: int
    features: int
    axes: tuple[str | None, str | None]
    dtype: DTypeLike = jnp.float32
    embedding_init: Initializer = nn.initializers.normal(0.02)

    def setup(self):
        """The table."""
        init = nn.with_logical_partitioning(self.embedding_init, self.axes)
        self.embedding = self.param("embedding", init, (self.num_embeddings, self.features))

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """Rows of the table."""
        # Whole: XLA makes much of a gather from a table whose width is shared. In float32, for its gradient's sums.
        table = _constrain(self.embedding, _gathered_axes(self.axes))
        return jnp.take(table, ids, axis=0).astype(self.dtype)

    def table(self) -> Float[Array, "rows features"]:
        """The whole table, for learned positions."""
        return self.embedding.astype(self.dtype)

    def attend(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch rows"]:
        """Products with every row in float32: the logits of a tied head."""
        return jnp.dot(x.astype(self.dtype), self.table().T, preferred_element_type=jnp.float32)


def conv3(features: int, stride: int, dtype: DTypeLike, name: str, kernel_init: Initializer = LECUN) -> nn.Conv:
    """A convolution over time, [B, T, in] to [B, ceil(T / stride), features], with kernel 3 and padding 1."""
    return nn.Conv(
        features,
        kernel_size=(3,),
        strides=stride,
        padding=1,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, (None, None, "embed")),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


def layer_norm(eps: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics and the exact variance: E[x²] - E[x]² cancels where the mean is large."""
    return nn.LayerNorm(
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        name=name,
    )


def rms_norm(eps: float, dtype: DTypeLike, name: str | None = None) -> nn.RMSNorm:
    """RMSNorm with float32 statistics; `name` is left out where a module's `setup` names it."""
    init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
    return nn.RMSNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, scale_init=init, name=name)


def rematted(part: Callable, remat: Remat, prevent_cse: bool = True) -> Callable:
    """A module class, or a function of a module, that recomputes in the backward pass what `remat` says."""
    return part if remat == "none" else nn.remat(part, policy=REMAT_POLICIES[remat], prevent_cse=prevent_cse)


def layer_stack(layer: type[nn.Module], length: int, remat: Remat) -> Callable[..., nn.Module]:
    """`length` copies of `layer`, run one after the other by a scan over parameters stacked on axis 0.

    Args:
        layer: a module whose call `(x, *shared) -> (x, None)` maps activations to activations of the same shape;
            `shared` goes to every layer as it is.
        length: number of layers.
        remat: what the backward pass finds saved besides each layer's input: `none` recomputes nothing, `full`
            recomputes everything, `dots` all but the products with weights.
    """
    return nn.scan(
        rematted(layer, remat, prevent_cse=False),  # a scan already keeps them apart
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
