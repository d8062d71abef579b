"""The decoder: Qwen2.5."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from omnivinci_jax.config import Qwen2Config
from omnivinci_jax.models.attention import apply_rope, attention, rope_cos_sin
from omnivinci_jax.models.attention_kernels import MASKED, Implementation
from omnivinci_jax.models.cached_attention import LayerCache, Past, cached_attention
from omnivinci_jax.models.layers import Dense, Embedding, Remat, layer_stack, rms_norm

INIT = nn.initializers.normal(0.02)  # Qwen's initializer_range


class Qwen2(nn.Module):
    """Embeddings in, hidden states out; tokens to embeddings and hidden states to logits are calls of their own.

    The tables have `padded_vocab_size` rows, so that they divide over a mesh; the logits of the rows past `vocab_size`
    are masked.
    """

    config: Qwen2Config
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"
    attention: Implementation = "xla"

    def setup(self):
        """Tables, layers and the final norm."""
        config = self.config
        self.embed_tokens = Embedding(
            config.padded_vocab_size, config.hidden_size, ("vocab", "embed"), self.dtype, INIT
        )
        self.layers = layer_stack(Qwen2Layer, config.num_hidden_layers, self.remat)(config, self.dtype, self.attention)
        self.norm = rms_norm(config.rms_norm_eps, self.dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Dense(
                config.padded_vocab_size, ("embed", "vocab"), False, self.dtype, jnp.float32, kernel_init=INIT
            )

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Embeddings of text."""
        return self.embed_tokens(tokens)

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm; a slot sees the earlier slots of its own segment."""
        rope = rope_cos_sin(positions, self.config.head_dim, self.config.rope_theta)
        x, _ = self.layers(x, rope, segment_ids)
        return self.norm(x)

    def extend(
        self,
        x: Float[Array, "R T D"],
        layers: tuple[dict[str, Any], ...],
        cache: tuple[LayerCache, ...],
        lengths: Int[Array, " R"],
        rows: Int[Array, " R"] | None = None,
    ) -> tuple[Float[Array, "R T D"], tuple[LayerCache, ...]]:
        """Hidden states of the next T slots of R rows after the final norm, and the cache with these slots.

        Args:
            x: what the decoder reads in these slots.
            layers: the parameters of each layer as arrays of their own (generate/weights.py): a step of decoding does
                little but read weights, and what a scan cuts out of a stack is copied first.
            cache: keys and values of each layer.
            lengths, rows: how many slots each of the R rows has, and which row of the cache it is
                (models/cached_attention.py).
        """
        rope = rope_cos_sin(lengths[:, None] + jnp.arange(x.shape[1]), self.config.head_dim, self.config.rope_theta)
        layer, extended = Qwen2Layer(self.config, self.dtype, self.attention, parent=None), []
        for params, layer_cache in zip(layers, cache, strict=True):
            x, layer_cache = layer.apply({"params": params}, x, rope, None, Past(layer_cache, lengths, rows))
            extended.append(layer_cache)
        return self.norm(x), tuple(extended)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch padded_vocab"]:
        """Logits over the padded vocabulary, in float32."""
        logits = self.embed_tokens.attend(hidden) if self.config.tie_word_embeddings else self.lm_head(hidden)
        return jnp.where(jnp.arange(logits.shape[-1]) < self.config.vocab_size, logits, MASKED)


class Qwen2Layer(nn.Module):
    """A pre-norm decoder layer."""

    config: Qwen2Config
    dtype: DTypeLike = jnp.float32
    attention: Implementation = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Array, Array],
        segment_ids: Int[Array, "B T"] | None,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Causal self-attention, then the gated MLP, each on the norm of the residual stream; see Qwen2Attention."""
        config = self.config
        x = nn.with_logical_constraint(x, ("group", "length", None))
        y = rms_norm(config.rms_norm_eps, self.dtype, "input_layernorm")(x)
        y, cache = Qwen2Attention(config, self.dtype, self.attention, name="self_attn")(y, rope, segment_ids, past)
        x = x + y
        y = rms_norm(config.rms_norm_eps, self.dtype, "post_attention_layernorm")(x)
        return x + Qwen2MLP(config, self.dtype, name="mlp")(y), cache


class Qwen2Attention(nn.Module):
    """Grouped-query attention with rotary positions; biases on q, k and v."""

    config: Qwen2Config
    dtype: DTypeLike = jnp.float32
    attention: Implementation = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Array, Array],
        segment_ids: Int[Array, "B T"] | None,
        past: Past | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Attends causally within each segment; with a past, to its cache, which it returns with the new slots."""
        config = self.config

        def heads(name: str, axis: str, count: int) -> Float[Array, "B T count head_dim"]:
            x_heads = Dense(count * config.head_dim, ("embed", axis), dtype=self.dtype, kernel_init=INIT, name=name)(x)
            return x_heads.reshape(*x.shape[:2], count, config.head_dim)

        q = apply_rope(heads("q_proj", "heads", config.num_attention_heads), *rope)
        k = apply_rope(heads("k_proj", "kv_heads", config.num_key_value_heads), *rope)
        v = heads("v_proj", "kv_heads", config.num_key_value_heads)
        if past is None:
            out = attention(q, k, v, causal=True, segment_ids=segment_ids, implementation=self.attention)
            cache = None
        else:
            out, cache = cached_attention(q, k, v, past)
        x = nn.with_logical_constraint(out.reshape(x.shape), ("group", "length", "heads"))
        o_proj = Dense(config.hidden_size, ("heads", "embed"), False, self.dtype, kernel_init=INIT, name="o_proj")
        return o_proj(x), cache


class Qwen2MLP(nn.Module):
    """SwiGLU."""

    config: Qwen2Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """silu(gate) · up, then down."""

        def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
            return Dense(features, axes, False, self.dtype, kernel_init=INIT, name=name)

        gate = dense(self.config.intermediate_size, ("embed", "mlp"), "gate_proj")(x)
        up = dense(self.config.intermediate_size, ("embed", "mlp"), "up_proj")(x)
        return dense(self.config.hidden_size, ("mlp", "embed"), "down_proj")(jax.nn.silu(gate) * up)
