"""compressed-tensors packs as we do, and transformers with it computes what our quantized decoder computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32  # noqa: E402
from transformers import Qwen2ForCausalLM  # noqa: E402

from conversion.to_torch import to_torch  # noqa: E402
from omnivinci_jax import model_dir  # noqa: E402
from omnivinci_jax.models.omnivinci import OmniVinci  # noqa: E402
from omnivinci_jax.models.quantized import quantize  # noqa: E402
from omnivinci_jax.quantize.recipes import Recipe  # noqa: E402
from tests.tiny import quantized_params, random_params, tiny_config, tiny_tokenizer  # noqa: E402

CONFIG = tiny_config(text=dataclasses.replace(tiny_config().text, vocab_size=500))


@pytest.mark.parametrize("shape", [(128, 5), (256, 64), (384, 7)])
def test_packing(shape):
    random = np.random.default_rng(0)
    weight = quantize(jnp.asarray(random.normal(size=shape), jnp.float32), "w4a16")
    pairs = np.asarray(weight.values)
    values = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(shape[::-1]).astype(np.int8) - 8
    packed = pack_to_int32(torch.tensor(values), 4)
    np.testing.assert_array_equal(pairs.view(np.int32), packed.numpy())
    np.testing.assert_array_equal(unpack_from_int32(packed, 4, values.shape).numpy(), values)


# compressed-tensors' own int8 rounds tokens to multiples of max / 127.5; we do to max / 127, as GPU engines do.
@pytest.mark.parametrize(("recipe", "tolerance"), [("w4a16", 1e-3), ("fp8", 1e-3), ("w8a8", 0.05)])
def test_transformers_computes_our_logits(recipe, tolerance, tmp_path):
    chosen = Recipe(recipe, modules=("llm/layers/.*",), group_size=64)
    params = quantized_params(random_params(CONFIG), chosen, CONFIG)
    model_dir.save(tmp_path / "model", CONFIG, params, tiny_tokenizer(), quantization=chosen.to_json())
    to_torch(tmp_path / "model", tmp_path / "torch", layout="released")
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path / "torch" / "llm", dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(0, 500, (1, 12))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()

    def logits(params: dict, tokens: jax.Array) -> jax.Array:
        model, variables = OmniVinci(CONFIG), {"params": params}
        x = model.apply(variables, tokens, method=model.embed_text)
        places = jnp.arange(tokens.shape[1])[None]
        hidden = model.apply(variables, x, places, jnp.ones_like(tokens), method=model.decode)
        return model.apply(variables, hidden, method=model.logits)[..., :500]

    actual = jax.jit(logits)({"llm": params["llm"]}, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())
