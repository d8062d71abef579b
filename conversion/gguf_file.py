"""Reads a decoder from a GGUF file, llama.cpp's format: configuration, tensors and tokenizer.

Quantized tensors become float32. Needs the package `gguf` (the extra of that name); neither torch nor llama.cpp.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from conversion.tensor_files import DTYPES
from omnivinci_jax.errors import UserError

# llama.cpp's names and those of the merged layout; `{n}` is the layer.
_NAMES = {
    "token_embd": "llm.model.embed_tokens",
    "output_norm": "llm.model.norm",
    "output": "llm.lm_head",
    **{
        f"blk.{{n}}.{name}": f"llm.model.layers.{{n}}.{torch_name}"
        for name, torch_name in (
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        )
    },
}
_ROPE_FACTORS = "rope_freqs.weight"


class GgufTensor(NamedTuple):
    """A tensor of a GGUF file. stored: gguf's ReaderTensor. heads: number of heads whose rows are permuted, or 0."""

    file: Path
    stored: Any
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in torch's order; GGUF has the fastest axis first."""
        return tuple(map(int, reversed(self.stored.shape)))

    @property
    def dtype(self) -> np.dtype:
        """The stored type, or float32 for a quantized one."""
        return DTYPES.get(self.stored.tensor_type.name, DTYPES["F32"])

    def read(self) -> np.ndarray:
        """Reads the tensor in transformers' layout; raises UserError for a quantization that gguf does not know."""
        from gguf.quants import dequantize

        try:
            array = dequantize(self.stored.data, self.stored.tensor_type)
        except NotImplementedError:
            kind = self.stored.tensor_type.name
            raise UserError(f"{self.file}: {self.stored.name} has type {kind}, which gguf cannot dequantize") from None
        array = array.reshape(self.shape).astype(self.dtype, copy=False)
        return _unpermute(array, self.heads) if self.heads else array


class GgufFile:
    """An open GGUF file of one decoder."""

    def __init__(self, path: Path):
        """Reads everything but the tensors' data.

        Raises:
            UserError: no such file, not a GGUF file, a truncated one, or the package `gguf` is missing.
        """
        try:
            from gguf import GGUFReader
        except ImportError:
            raise UserError(f"{path}: GGUF needs the package gguf: pip install 'omnivinci-jax[gguf]'") from None
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.path = path
        try:
            reader = GGUFReader(path)
        except Exception as error:  # gguf raises whatever a damaged file leads to
            raise UserError(f"{path}: not a GGUF file, or a truncated one: {str(error).splitlines()[0]}") from None
        self._fields = reader.fields
        self._stored = {tensor.name: tensor for tensor in reader.tensors}
        self._architecture = self._field("general.architecture")
        if (count := self._field("split.count", 1)) > 1:
            raise UserError(f"{path}: split.count is {count}: join the files with llama-gguf-split --merge")

    def config(self) -> dict[str, Any]:
        """Returns the decoder's config.json in transformers' keys.

        Raises:
            UserError: the file lacks one of them.
        """
        arch, heads = self._architecture, self._hyperparameter("attention.head_count")
        width = self._hyperparameter("embedding_length")
        head_dim = self._field(f"{arch}.attention.key_length", width // heads)
        rope_type = self._field(f"{arch}.rope.scaling.type", "none")
        if _ROPE_FACTORS in self._stored:
            rope_type = "llama3"
        return dict(
            model_type=arch,
            vocab_size=self._tensor("token_embd.weight").shape[0],
            hidden_size=width,
            intermediate_size=self._hyperparameter("feed_forward_length"),
            num_hidden_layers=self._hyperparameter("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._field(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=self._hyperparameter("attention.layer_norm_rms_epsilon"),
            max_position_embeddings=self._hyperparameter("context_length"),
            tie_word_embeddings="output.weight" not in self._stored,
            rope_parameters={
                "rope_type": "default" if rope_type == "none" else rope_type,
                "rope_theta": self._field(f"{arch}.rope.freq_base", 10_000.0),
                "partial_rotary_factor": self._field(f"{arch}.rope.dimension_count", head_dim) / head_dim,
            },
        )

    def tensors(self) -> dict[str, GgufTensor]:
        """Returns the tensors by merged name.

        Raises:
            UserError: a tensor that neither Llama nor Qwen2 has.
        """
        return {self._merged_name(name): self._tensor(name) for name in self._stored}

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the tokenizer that transformers makes of the file; AutoTokenizer itself would need torch.

        Raises:
            UserError: the file has none, or one of an unknown kind.
        """
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_TOKENIZER_MAPPING,
            convert_gguf_tokenizer,
        )

        read, settings = (
            {name: self._field(f"tokenizer.{key}") for key, name in names.items() if f"tokenizer.{key}" in self._fields}
            for names in (GGUF_TOKENIZER_MAPPING[group] for group in ("tokenizer", "tokenizer_config"))
        )
        try:
            backend, _ = convert_gguf_tokenizer(self._architecture, read)
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.path}: cannot read the tokenizer: {str(error).splitlines()[0]}") from None
        special = {
            f"{name}_token": read["tokens"][read[f"{name}_token_id"]]
            for name in ("bos", "eos", "unk", "pad")
            if f"{name}_token_id" in read
        }
        return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=settings.get("chat_template"), **special)

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self._stored:
            raise UserError(f"{self.path}: tensor {name} is missing")
        heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(name.split(".")[-2], "")
        permuted = heads and self._architecture == "llama"  # Qwen2's rows are as in transformers
        count = self._field(f"llama.attention.{heads}", None) if permuted else 0
        if count is None:  # as many key heads as query heads
            count = self._hyperparameter("attention.head_count")
        return GgufTensor(self.path, self._stored[name], count)

    def _merged_name(self, name: str) -> str:
        layer = re.match(r"blk\.(\d+)\.", name)
        module, _, kind = name.rpartition(".")
        if layer:
            module = "blk.{n}." + module.removeprefix(layer[0])
        if module not in _NAMES:
            raise UserError(
                f"{self.path}: this model has no tensor {name} (general.architecture {self._architecture!r})"
            )
        return f"{_NAMES[module].format(n=layer[1] if layer else '')}.{kind}"

    def _hyperparameter(self, name: str) -> Any:
        return self._field(f"{self._architecture}.{name}")

    def _field(self, key: str, *default: Any) -> Any:
        if key in self._fields:
            return self._fields[key].contents()
        if not default:
            raise UserError(f"{self.path}: no {key}")
        return default[0]


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of each head's n rows: 0, n/2, 1, n/2 + 1, …, the two of a rotated pair together."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
