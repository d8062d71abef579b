"""Maps PyTorch tensors to leaves of the parameter tree: one table, used in both directions.

Torch names are those of the merged layout (conversion/layouts.py maps the released ones). `{n}` is a layer index: torch
has separate tensors for each layer, the tree stacks them in one leaf. SigLIP's last layer, which is never computed, is
a separate leaf.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from omnivinci_jax.config import OmniVinciConfig

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """A change of layout; its functions return views where possible, so that nothing is copied twice.

    to_tree: converts torch's array to the tree's. to_torch: converts back, given torch's shape.
    torch_shape: gives torch's shape, from the tree's and the number of real vocabulary rows.
    """

    to_tree: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray, Shape], np.ndarray]
    torch_shape: Callable[[Shape, int], Shape]


def _pad_rows(x: np.ndarray) -> np.ndarray:
    """Pads vocabulary rows with zeros to a multiple of 128."""
    return np.concatenate([x, np.zeros((-len(x) % 128, *x.shape[1:]), x.dtype)]) if len(x) % 128 else x


def _patch_shape(shape: Shape, _rows: int) -> Shape:
    side = math.isqrt(shape[0] // 3)
    return shape[1], 3, side, side


SAME = Transform(lambda x: x, lambda x, _: x, lambda shape, _: shape)
# [out, in] and [in, out]
LINEAR = Transform(lambda x: x.T, lambda x, _: x.T, lambda shape, _: shape[::-1])
# [out, in, taps] and [taps, in, out]
CONV = Transform(lambda x: x.transpose(2, 1, 0), lambda x, _: x.transpose(2, 1, 0), lambda shape, _: shape[::-1])
# [out, channel, row, column] and [(row, column, channel), out]
PATCHES = Transform(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x, shape: x.reshape(*shape[2:], 3, -1).transpose(3, 2, 0, 1),
    _patch_shape,
)
# [rows, width] and [padded rows, width]
ROWS = Transform(_pad_rows, lambda x, shape: x[: shape[0]], lambda shape, rows: (rows, shape[1]))
# [rows, in] and [in, padded rows]
HEAD = Transform(lambda x: _pad_rows(x).T, lambda x, shape: x[:, : shape[0]].T, lambda shape, rows: (rows, shape[0]))

Row = tuple[str, str, Transform]


def _dense(torch: str, tree: str, *names: str, bias: bool = True, weight: Transform = LINEAR) -> list[Row]:
    """Returns table rows of linear or convolution modules whose dotted `names` are the same in the tree."""
    rows = []
    for name in names or ("",):
        path = f"{tree}/{name.replace('.', '/')}".rstrip("/")
        module = f"{torch}.{name}".rstrip(".")
        rows.append((f"{module}.weight", f"{path}/kernel", weight))
        if bias:
            rows.append((f"{module}.bias", f"{path}/bias", SAME))
    return rows


def _norm(torch: str, tree: str, *names: str, bias: bool = True) -> list[Row]:
    rows = []
    for name in names:
        rows.append((f"{torch}.{name}.weight", f"{tree}/{name}/scale", SAME))
        if bias:
            rows.append((f"{torch}.{name}.bias", f"{tree}/{name}/bias", SAME))
    return rows


_SIGLIP, _SIGLIP_LAYER = "vision_tower.vision_tower", "vision_tower.vision_tower.encoder.layers.{n}"
_SOUND_LAYER, _LLM_LAYER = "sound_tower.layers.{n}", "llm.model.layers.{n}"

TABLE: tuple[Row, ...] = (
    *_dense(f"{_SIGLIP}.embeddings.patch_embedding", "vision_tower/patch_embedding", weight=PATCHES),
    (f"{_SIGLIP}.embeddings.position_embedding.weight", "vision_tower/position_embedding/embedding", SAME),
    *_dense(
        _SIGLIP_LAYER,
        "vision_tower/layers",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "mlp.fc1",
        "mlp.fc2",
    ),
    *_norm(_SIGLIP_LAYER, "vision_tower/layers", "layer_norm1", "layer_norm2"),
    *_norm(_SIGLIP, "vision_tower", "post_layernorm"),
    *_dense("sound_tower", "sound_tower", "conv1", "conv2", weight=CONV),
    ("sound_tower.embed_positions.weight", "sound_tower/embed_positions/embedding", SAME),
    *_dense(
        _SOUND_LAYER,
        "sound_tower/layers",
        "self_attn.q_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "fc1",
        "fc2",
    ),
    *_dense(_SOUND_LAYER, "sound_tower/layers", "self_attn.k_proj", bias=False),
    *_norm(_SOUND_LAYER, "sound_tower/layers", "self_attn_layer_norm", "final_layer_norm"),
    *_norm("sound_tower", "sound_tower", "layer_norm"),
    ("mm_projector.layers.1.weight", "mm_projector/norm/scale", SAME),
    ("mm_projector.layers.1.bias", "mm_projector/norm/bias", SAME),
    *_dense("mm_projector.layers.2", "mm_projector/fc1"),
    *_dense("mm_projector.layers.4", "mm_projector/fc2"),
    *_dense("sound_mm_projector.layers.0", "sound_mm_projector/fc1"),
    *_dense("sound_mm_projector.layers.2", "sound_mm_projector/fc2"),
    ("llm.model.embed_tokens.weight", "llm/embed_tokens/embedding", ROWS),
    *_dense(_LLM_LAYER, "llm/layers", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    *_dense(
        _LLM_LAYER,
        "llm/layers",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        bias=False,
    ),
    *_norm(_LLM_LAYER, "llm/layers", "input_layernorm", "post_attention_layernorm", bias=False),
    *_norm("llm.model", "llm", "norm", bias=False),
    ("llm.lm_head.weight", "llm/lm_head/kernel", HEAD),
)


class Tensor(NamedTuple):
    """One torch tensor: its name and shape, its leaf, and its index in the leaf (None: the whole leaf).

    dtype: its type in a file, for tensors of quantized layers; None: the leaf's, or what the user chooses.
    """

    name: str
    shape: Shape
    path: str
    index: int | None
    transform: Transform
    dtype: np.dtype | None = None


def tensors(config: OmniVinciConfig, leaves: dict[str, Shape]) -> Iterator[Tensor]:
    """Yields every published tensor, leaf by leaf, of a model whose parameters have the shapes `leaves` (by path).

    A tied decoder has no head, and Llama's has no biases. For leaves without a published name see `unpublished_leaves`.
    """
    absent = {"llm/lm_head/kernel"} if config.text.tie_word_embeddings else set()
    if not config.text.qkv_bias:
        absent |= {f"llm/layers/self_attn/{name}_proj/bias" for name in "qkv"}
    for torch_name, path, transform in TABLE:
        if path in absent:
            continue
        yield from _leaf_tensors(config, leaves, torch_name, path, transform)


def unpublished_leaves(config: OmniVinciConfig, leaves: dict[str, Shape]) -> dict[str, str]:
    """Returns names and paths of leaves that the published layouts lack; conversion does not transform them."""
    published = {tensor.path for tensor in tensors(config, leaves)}
    return {path.replace("/", "."): path for path in leaves if path not in published}


def _leaf_tensors(config: OmniVinciConfig, leaves: dict[str, Shape], torch_name: str, path: str, transform: Transform):
    rows = config.text.vocab_size
    if "{n}" not in torch_name:
        yield Tensor(torch_name, transform.torch_shape(leaves[path], rows), path, None, transform)
        return
    count, *shape = leaves[path]
    torch_shape = transform.torch_shape(tuple(shape), rows)
    for layer in range(count):
        yield Tensor(torch_name.format(n=layer), torch_shape, path, layer, transform)
    if path.startswith("vision_tower/"):
        last = path.replace("/layers/", "/last_layer/")
        yield Tensor(torch_name.format(n=count), torch_shape, last, None, transform)
