"""Layers that all parts of the model use. They compute in `compute.dtype`, whatever the parameters' type."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from omnivinci_jax.models.compute import Compute, Remat
from omnivinci_jax.models.parameters import CONVOLUTION, KERNEL, NORM, TABLE, Initializer, Role, declare
from omnivinci_jax.models.weights import AdaptedWeight, Weight, matmul, take_rows, weight_param

LECUN = nn.initializers.lecun_normal()

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("product"),
}


class Dense(nn.Module):
    """x @ kernel + bias on the last axis.

    kernel: a weight [in, features] (models/weights.py) with logical names `axes`; bias: [features], unless `use_bias`
    is false. An adapter in the parameters (models/lora.py) becomes part of the weight.
    out_dtype: type in which the product is accumulated and returned; None for the compute type (logits: float32).
    """

    features: int
    axes: tuple[str | None, str | None]
    compute: Compute = Compute()
    use_bias: bool = True
    out_dtype: DTypeLike | None = None
    kernel_init: Initializer = LECUN
    role: Role = KERNEL

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Multiplies in the compute type."""
        dtype = self.compute.dtype
        y = matmul(x.astype(dtype), self._weight(x.shape[-1]), self.axes, self.out_dtype or dtype)
        y = checkpoint_name(y, "product")
        if self.use_bias:
            init = declare(nn.initializers.zeros, self.axes[1:])
            y = y + self.param("bias", init, (self.features,)).astype(y.dtype)
        return y

    def _weight(self, width: int) -> Float[Array, "in out"] | Weight:
        kernel = weight_param(self, "kernel", self.kernel_init, (width, self.features), self.axes, self.role)
        if not self.has_variable("params", "lora_a"):
            return kernel
        return AdaptedWeight(kernel, *(self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale")))


class Embedding(nn.Module):
    """A table of `num_embeddings` rows; an id outside it gives NaN rather than another row."""

    num_embeddings: int
    features: int
    axes: tuple[str | None, str | None]
    compute: Compute = Compute()
    embedding_init: Initializer = nn.initializers.normal(0.02)
    role: Role = TABLE

    def setup(self):
        """Creates the table."""
        shape = self.num_embeddings, self.features
        self.embedding = weight_param(self, "embedding", self.embedding_init, shape, self.axes, self.role)

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
        """Looks up rows of the table."""
        return take_rows(self.embedding, ids, self.axes, self.compute.dtype)

    def table(self) -> Float[Array, "rows features"]:
        """Returns the whole table, for learned positions."""
        assert not isinstance(self.embedding, Weight)  # positions are stored as an array
        return self.embedding.astype(self.compute.dtype)

    def attend(self, x: Float[Array, "*batch features"]) -> Float32[Array, "*batch rows"]:
        """Returns the products with every row in float32: the logits of a tied head."""
        return matmul(x.astype(self.compute.dtype), self.embedding.T, (self.axes[1], self.axes[0]), jnp.float32)


def conv3(features: int, stride: int, dtype: DTypeLike, name: str, kernel_init: Initializer = LECUN) -> nn.Conv:
    """Makes a convolution over time, [B, T, in] to [B, ceil(T / stride), features], with kernel 3 and padding 1."""
    return nn.Conv(
        features,
        kernel_size=(3,),
        strides=stride,
        padding=1,
        dtype=dtype,
        kernel_init=declare(kernel_init, (None, None, "embed"), CONVOLUTION),
        bias_init=declare(nn.initializers.zeros, ("embed",)),
        name=name,
    )


def layer_norm(eps: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Makes a LayerNorm with float32 statistics and exact variance: E[x²] - E[x]² cancels where the mean is large."""
    return nn.LayerNorm(
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,
        scale_init=declare(nn.initializers.ones, ("norm",), NORM),
        bias_init=declare(nn.initializers.zeros, ("norm",), NORM),
        name=name,
    )


def rms_norm(eps: float, dtype: DTypeLike, name: str | None = None) -> nn.RMSNorm:
    """Makes an RMSNorm with float32 statistics; omit `name` in a module's `setup`, which names it."""
    init = declare(nn.initializers.ones, ("norm",), NORM)
    return nn.RMSNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, scale_init=init, name=name)


def rematted(part: Callable, remat: Remat, *, prevent_cse: bool = True) -> Callable:
    """Wraps a module class, or a function of a module: the backward pass recomputes activations as `remat` says."""
    return part if remat == "none" else nn.remat(part, policy=REMAT_POLICIES[remat], prevent_cse=prevent_cse)


def layer_stack(layer: type[nn.Module], length: int, remat: Remat) -> Callable[..., nn.Module]:
    """Stacks `length` copies of `layer`, run one after the other by a scan over parameters stacked on axis 0.

    Args:
        layer: a module whose call `(x, *shared) -> (x, None)` maps activations to activations of the same shape;
            every layer gets the same `shared`.
        length: number of layers.
        remat: what the backward pass recomputes from each layer's input: nothing (`none`), everything (`full`), or
            everything but the products with weights (`dots`).
    """
    return nn.scan(
        rematted(layer, remat, prevent_cse=False),  # a scan already prevents CSE
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
