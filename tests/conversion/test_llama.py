"""A Llama in place of the decoder: it comes back from an export bit for bit, and transformers loads it."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conversion.from_torch import from_torch
from conversion.to_torch import to_torch
from conversion.verify import verify
from tests.conversion.checkpoints import make_trained, parameters, rewrite
from tests.parity.test_towers import randomise
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_trained(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tied, whole, tmp_path):
    text = tiny_config().text
    config = LlamaConfig(
        vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied, rms_norm_eps=1e-5, rope_theta=1e5,
        bos_token_id=7,
    )  # fmt: skip
    llama = randomise(LlamaForCausalLM(config))
    llama.save_pretrained(tmp_path / "llama")

    from_torch(whole, tmp_path / "model", parts={"llm": tmp_path / "llama"})
    assert not [path for path in parameters(tmp_path / "model") if path.startswith("llm/") and "bias" in path]
    to_torch(tmp_path / "model", tmp_path / "released", layout="released")

    back, loading = LlamaForCausalLM.from_pretrained(tmp_path / "released" / "llm", output_loading_info=True)
    assert not any(loading.values()), loading
    for name, tensor in llama.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, text.vocab_size, (1, 9)))
    with torch.no_grad():
        assert torch.equal(back.eval()(tokens).logits, llama(tokens).logits)

    if tied:  # some files have the head once more
        rewrite(tmp_path / "released" / "llm", lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"]}))
    assert verify(tmp_path / "model", tmp_path / "released").differences == []
    from_torch(tmp_path / "released", tmp_path / "again")
    before, after = parameters(tmp_path / "model"), parameters(tmp_path / "again")
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
