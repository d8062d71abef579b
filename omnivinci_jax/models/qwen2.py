"""The decoder: Qwen2.5, or one of the Llama family (without biases)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from omnivinci_jax.config import Qwen2Config
from omnivinci_jax.models.attention import apply_rope, attention, rope_cos_sin
from omnivinci_jax.models.attention_kernels import MASKED
from omnivinci_jax.models.cached_attention import LayerCache, Past, cached_attention
from omnivinci_jax.models.compute import Compute
from omnivinci_jax.models.layers import Dense, Embedding, layer_stack, rms_norm
from omnivinci_jax.models.parameters import HEAD, TABLE, TIED_HEAD
from omnivinci_jax.models.sharding import constrain

INIT = nn.initializers.normal(0.02)  # Qwen's initializer_range


class Qwen2(nn.Module):
    """Maps embeddings to hidden states; `embed` maps tokens to embeddings, `logits` hidden states to logits.

    The embedding and the head have `padded_vocab_size` rows, so that a mesh divides them; logits of the rows past
    `vocab_size` are masked.
    """

    config: Qwen2Config
    compute: Compute = Compute()

    def setup(self):
        """Creates the embedding, the layers, the final norm and the head."""
        config, compute = self.config, self.compute
        role = TIED_HEAD if config.tie_word_embeddings else TABLE
        self.embed_tokens = Embedding(
            config.padded_vocab_size, config.hidden_size, ("vocab", "embed"), self.compute, INIT, role
        )
        self.layers = layer_stack(Qwen2Layer, config.num_hidden_layers, compute.decoder_remat)(config, compute)
        self.norm = rms_norm(config.rms_norm_eps, self.compute.dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Dense(
                config.padded_vocab_size,
                ("embed", "vocab"),
                compute,
                use_bias=False,
                out_dtype=jnp.float32,
                kernel_init=INIT,
                role=HEAD,
            )

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Embeds text tokens."""
        return self.embed_tokens(tokens)

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Returns hidden states after the final norm; a slot attends to the earlier slots of its own segment."""
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
        """Returns final hidden states of the next T slots of R rows, and the cache with these slots.

        Args:
            x: the decoder's input in these slots.
            layers: the parameters of each layer as separate arrays (generate/weights.py): a decode step mostly reads
                weights, and a scan would first copy each layer's slice of a stack.
            cache: keys and values of each layer.
            lengths, rows: filled slots of each row, and its index in the cache (models/cached_attention.py).
        """
        rope = rope_cos_sin(lengths[:, None] + jnp.arange(x.shape[1]), self.config.head_dim, self.config.rope_theta)
        layer, extended = Qwen2Layer(self.config, self.compute, parent=None), []
        for params, layer_cache in zip(layers, cache, strict=True):
            x, layer_cache = layer.apply({"params": params}, x, rope, None, Past(layer_cache, lengths, rows))
            extended.append(layer_cache)
        return self.norm(x), tuple(extended)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch padded_vocab"]:
        """Returns logits over the padded vocabulary, in float32."""
        logits = self.embed_tokens.attend(hidden) if self.config.tie_word_embeddings else self.lm_head(hidden)
        return jnp.where(jnp.arange(logits.shape[-1]) < self.config.vocab_size, logits, MASKED)


class Qwen2Layer(nn.Module):
    """A pre-norm decoder layer."""

    config: Qwen2Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Array, Array],
        segment_ids: Int[Array, "B T"] | None,
        past: Past | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Applies causal self-attention (see Qwen2Attention), then the gated MLP, each on the normalised residual."""
        config = self.config
        x = constrain(x, "group", "length")
        y = rms_norm(config.rms_norm_eps, self.compute.dtype, "input_layernorm")(x)
        y, cache = Qwen2Attention(config, self.compute, name="self_attn")(y, rope, segment_ids, past)
        x = x + y
        y = rms_norm(config.rms_norm_eps, self.compute.dtype, "post_attention_layernorm")(x)
        return x + Qwen2MLP(config, self.compute, name="mlp")(y), cache


class Qwen2Attention(nn.Module):
    """Grouped-query attention with rotary positions; q, k and v have biases if `config.qkv_bias`."""

    config: Qwen2Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Array, Array],
        segment_ids: Int[Array, "B T"] | None,
        past: Past | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Attends causally within each segment; with `past`, to its cache, and returns the extended cache."""
        config = self.config

        def heads(name: str, axis: str, count: int) -> Float[Array, "B T count head_dim"]:
            width, axes = count * config.head_dim, ("embed", axis)
            dense = Dense(width, axes, self.compute, use_bias=config.qkv_bias, kernel_init=INIT, name=name)
            return dense(x).reshape(*x.shape[:2], count, config.head_dim)

        q = apply_rope(heads("q_proj", "heads", config.num_attention_heads), *rope)
        k = apply_rope(heads("k_proj", "kv_heads", config.num_key_value_heads), *rope)
        v = heads("v_proj", "kv_heads", config.num_key_value_heads)
        if past is None:
            implementation = self.compute.attention
            out = attention(q, k, v, causal=True, segment_ids=segment_ids, implementation=implementation)
            cache = None
        else:
            out, cache = cached_attention(q, k, v, past)
        x = constrain(out.reshape(x.shape), "group", "length", "heads")
        axes = ("heads", "embed")
        o_proj = Dense(config.hidden_size, axes, self.compute, use_bias=False, kernel_init=INIT, name="o_proj")
        return o_proj(x), cache


class Qwen2MLP(nn.Module):
    """SwiGLU."""

    config: Qwen2Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Computes down(silu(gate(x)) · up(x))."""

        def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
            return Dense(features, axes, self.compute, use_bias=False, kernel_init=INIT, name=name)

        gate = dense(self.config.intermediate_size, ("embed", "mlp"), "gate_proj")(x)
        up = dense(self.config.intermediate_size, ("embed", "mlp"), "up_proj")(x)
        return dense(self.config.hidden_size, ("mlp", "embed"), "down_proj")(jax.nn.silu(gate) * up)
