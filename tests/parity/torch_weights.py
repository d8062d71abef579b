"""Torch tensors, named as in the merged checkpoint, to our parameter tree."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from omnivinci_jax.config import OmniVinciConfig

Transform = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """[out, in] to [in, out]."""
    return x.T


def conv(x: np.ndarray) -> np.ndarray:
    """[out, in, taps] to [taps, in, out]."""
    return x.transpose(2, 1, 0)


def patches(x: np.ndarray) -> np.ndarray:
    """[out, channel, row, column] to [(row, column, channel), out]."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def rows(x: np.ndarray) -> np.ndarray:
    """Vocabulary rows padded to a multiple of 128."""
    return np.pad(x, ((0, -len(x) % 128), (0, 0)))


def head(x: np.ndarray) -> np.ndarray:
    """[vocabulary, in] to [in, padded vocabulary]."""
    return rows(x).T


SIGLIP, SOUND, LLM = r"vision_tower\.vision_tower\.", r"sound_tower\.", r"llm\.(?:model\.)?"
PROJ = r"(?P<m>self_attn\.\w+|mlp\.\w+|fc[12])"
NORM = r"(?P<m>\w*norm\d?)"
# (torch name, tree path, transform). `N` is a layer's number; `m` one or more names that are the same on both sides.
TABLE: tuple[tuple[str, str, Transform], ...] = (
    (SIGLIP + r"embeddings\.patch_embedding\.weight", "vision_tower/patch_embedding/kernel", patches),
    (SIGLIP + r"embeddings\.patch_embedding\.bias", "vision_tower/patch_embedding/bias", same),
    (SIGLIP + r"embeddings\.position_embedding\.weight", "vision_tower/position_embedding/embedding", same),
    (SIGLIP + r"encoder\.layers\.(?P<N>\d+)\." + PROJ + r"\.weight", "vision_tower/layers/{m}/kernel", linear),
    (SIGLIP + r"encoder\.layers\.(?P<N>\d+)\." + NORM + r"\.weight", "vision_tower/layers/{m}/scale", same),
    (SIGLIP + r"encoder\.layers\.(?P<N>\d+)\.(?P<m>.+)\.bias", "vision_tower/layers/{m}/bias", same),
    (SIGLIP + r"post_layernorm\.weight", "vision_tower/post_layernorm/scale", same),
    (SIGLIP + r"post_layernorm\.bias", "vision_tower/post_layernorm/bias", same),
    (SOUND + r"(?P<m>conv[12])\.weight", "sound_tower/{m}/kernel", conv),
    (SOUND + r"(?P<m>conv[12])\.bias", "sound_tower/{m}/bias", same),
    (SOUND + r"embed_positions\.weight", "sound_tower/embed_positions/embedding", same),
    (SOUND + r"layers\.(?P<N>\d+)\." + PROJ + r"\.weight", "sound_tower/layers/{m}/kernel", linear),
    (SOUND + r"layers\.(?P<N>\d+)\." + NORM + r"\.weight", "sound_tower/layers/{m}/scale", same),
    (SOUND + r"layers\.(?P<N>\d+)\.(?P<m>.+)\.bias", "sound_tower/layers/{m}/bias", same),
    (SOUND + r"layer_norm\.weight", "sound_tower/layer_norm/scale", same),
    (SOUND + r"layer_norm\.bias", "sound_tower/layer_norm/bias", same),
    (r"mm_projector\.layers\.1\.weight", "mm_projector/norm/scale", same),
    (r"mm_projector\.layers\.1\.bias", "mm_projector/norm/bias", same),
    (r"mm_projector\.layers\.2\.weight", "mm_projector/fc1/kernel", linear),
    (r"mm_projector\.layers\.2\.bias", "mm_projector/fc1/bias", same),
    (r"mm_projector\.layers\.4\.weight", "mm_projector/fc2/kernel", linear),
    (r"mm_projector\.layers\.4\.bias", "mm_projector/fc2/bias", same),
    (r"sound_mm_projector\.layers\.0\.weight", "sound_mm_projector/fc1/kernel", linear),
    (r"sound_mm_projector\.layers\.0\.bias", "sound_mm_projector/fc1/bias", same),
    (r"sound_mm_projector\.layers\.2\.weight", "sound_mm_projector/fc2/kernel", linear),
    (r"sound_mm_projector\.layers\.2\.bias", "sound_mm_projector/fc2/bias", same),
    (LLM + r"embed_tokens\.weight", "llm/embed_tokens/embedding", rows),
    (LLM + r"layers\.(?P<N>\d+)\." + PROJ + r"\.weight", "llm/layers/{m}/kernel", linear),
    (LLM + r"layers\.(?P<N>\d+)\.(?P<m>.+_proj)\.bias", "llm/layers/{m}/bias", same),
    (LLM + r"layers\.(?P<N>\d+)\." + NORM + r"\.weight", "llm/layers/{m}/scale", same),
    (LLM + r"norm\.weight", "llm/norm/scale", same),
    (r"llm\.lm_head\.weight", "llm/lm_head/kernel", head),
)


def params_from_torch(tensors: Mapping[str, np.ndarray], config: OmniVinciConfig) -> dict:
    """The tree of all `tensors`: layers stacked, SigLIP's last one apart; KeyError for a name not in the table."""
    leaves: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        path, layer, transform = _find(name)
        if layer is None:
            leaves[path] = transform(tensor)
        elif path.startswith("vision_tower/") and layer == config.vision.num_hidden_layers - 1:
            leaves[path.replace("/layers/", "/last_layer/")] = transform(tensor)
        else:
            stacks.setdefault(path, {})[layer] = transform(tensor)
    leaves |= {path: np.stack([layers[n] for n in range(len(layers))]) for path, layers in stacks.items()}
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.asarray(leaf, np.float32)
    return tree


def _find(name: str) -> tuple[str, int | None, Transform]:
    for pattern, path, transform in TABLE:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            layer = None if groups.get("N") is None else int(groups["N"])
            return path.format(m=groups.get("m", "").replace(".", "/")), layer, transform
    raise KeyError(f"{name} is not in the table")
