"""A decoder from a GGUF file, against transformers reading the same file."""

import json
import subprocess
import sys

import gguf
import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion.from_torch import from_torch
from conversion.gguf_file import GgufFile
from conversion.source import open_source
from omnivinci_jax.errors import UserError
from omnivinci_jax.sequence.tokenizer import Tokenizer
from tests.conversion.checkpoints import make_trained
from tests.conversion.test_sources import TOKENS, decode, parameters
from tests.parity.golden import assert_close
from tests.tiny import REPOSITORY, tiny_tokenizer

TEXT = "The <|im_start|>fox\n saw 12 lights"
Q4_1, BF16 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.BF16
WIDTH, FEATURES, HEADS, KV_HEADS, LAYERS = 128, 96, 4, 2, 2


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's conversion of q and k."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path, arch="llama", tied=True, kind=Q4_1, **fields) -> None:
    """Writes a tiny decoder with our tokenizer; `fields` are further metadata of its architecture."""
    tokenizer = json.loads(tiny_tokenizer().path.read_text())
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEATURES)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    for name, value in fields.items():
        if name == "split__count":
            writer.add_uint16("split.count", value)
        else:
            writer.add_string(f"{arch}.{name.replace('__', '.')}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(ids["<|im_end|>"])
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, heads: int = 0) -> None:
        if len(shape) == 1:
            values = random.normal(size=shape) * 0.3 + name.endswith("norm.weight")
            writer.add_tensor(name, values.astype(np.float32))
            return
        values = (random.normal(size=shape) / shape[1] ** 0.5).astype(np.float32)
        values = permuted(values, heads) if heads else values
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), WIDTH)
    for n in range(LAYERS):
        q_heads, k_heads = (HEADS, KV_HEADS) if arch == "llama" else (0, 0)
        add(f"blk.{n}.attn_q.weight", WIDTH, WIDTH, heads=q_heads)
        add(f"blk.{n}.attn_k.weight", WIDTH // 2, WIDTH, heads=k_heads)
        add(f"blk.{n}.attn_v.weight", WIDTH // 2, WIDTH)
        add(f"blk.{n}.attn_output.weight", WIDTH, WIDTH)
        if arch == "qwen2":
            for name, width in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2)):
                add(f"blk.{n}.attn_{name}.bias", width)
        for name, shape in (("gate", (FEATURES, WIDTH)), ("up", (FEATURES, WIDTH)), ("down", (WIDTH, FEATURES))):
            add(f"blk.{n}.ffn_{name}.weight", *shape)
        add(f"blk.{n}.attn_norm.weight", WIDTH)
        add(f"blk.{n}.ffn_norm.weight", WIDTH)
    add("output_norm.weight", WIDTH)
    if not tied:
        add("output.weight", len(tokens), WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    write(path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_trained(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "arch, tied, kind", [("llama", True, Q4_1), ("llama", False, BF16), ("qwen2", True, Q4_1), ("qwen2", False, BF16)]
)
def test_output_equals_transformers(arch, tied, kind, whole, tmp_path):
    write(tmp_path / "decoder.gguf", arch, tied, kind)
    opened = open_source(whole, {"llm": tmp_path / "decoder.gguf"})
    text = opened.config.text
    assert (text.qkv_bias, text.tie_word_embeddings) == (arch == "qwen2", tied)
    assert (text.rope_theta, round(text.rms_norm_eps, 9), text.max_position_embeddings) == (50_000.0, 1e-5, 512)
    params = parameters(opened, "llm")
    assert str(params["embed_tokens"]["embedding"].dtype) == ("float32" if kind == Q4_1 else "bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="decoder.gguf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    logits = np.asarray(decode(opened.config, params))[..., : expected.shape[-1]]
    assert np.abs(expected).max() > 1
    assert_close(logits, expected, 1e-5)


def test_tokenizer_equals_transformers(llama, whole, tmp_path):
    theirs = AutoTokenizer.from_pretrained(llama.parent, gguf_file=llama.name)
    ids = theirs.encode(TEXT, add_special_tokens=False)
    assert len(ids) > 5
    notes = from_torch(whole, tmp_path / "model", parts={"llm": llama}, dtype="bfloat16")
    tokenizer = Tokenizer(tmp_path / "model")
    before, after = TEXT.split("<|im_start|>")
    start = tokenizer.token_id("<|im_start|>")
    assert [*tokenizer.encode(before), start, *tokenizer.encode(after)] == ids
    assert not any("is new in the tokenizer" in note for note in notes)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode(TEXT, add_special_tokens=False) == ids


def test_needs_no_torch(llama):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from conversion.gguf_file import GgufFile\n"
        "file = GgufFile(Path(sys.argv[1])); print(file.tokenizer().eos_token)\n"
        "print(file.tensors()['llm.model.layers.1.self_attn.k_proj.weight'].read().shape)"
    )
    run = [sys.executable, "-c", code, str(llama)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.splitlines() == ["<|im_end|>", "(64, 128)"]


def test_refused_files(llama, whole, tmp_path, monkeypatch):
    def refused(name: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            open_source(whole, {"llm": tmp_path / name})
        assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / name))

    refused("absent.gguf", "no such file")
    (tmp_path / "text.gguf").write_text("no GGUF at all")
    refused("text.gguf", "not a GGUF file, or a truncated one: GGUF magic invalid")
    data = llama.read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
    refused("short.gguf", "not a GGUF file, or a truncated one")
    write(tmp_path / "qwen3.gguf", "qwen3")
    refused("qwen3.gguf", "model_type is 'qwen3'; supported: 'qwen2', 'llama'")
    write(tmp_path / "yarn.gguf", rope__scaling__type="yarn")
    refused("yarn.gguf", r"\(model_type 'llama'\): rope_parameters.rope_type is 'yarn'; supported: 'default'")
    write(tmp_path / "split.gguf", split__count=3)
    refused("split.gguf", r"split\.count is 3: join the files with llama-gguf-split --merge")
    (tmp_path / "biased.gguf").write_bytes(data.replace(b"blk.1.attn_norm.weight", b"blk.1.attn_norX.weight"))
    refused("biased.gguf", r"this model has no tensor blk.1.attn_norX.weight \(general.architecture 'llama'\)")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf: pip install 'omnivinci-jax\[gguf\]'"):
        GgufFile(llama)
