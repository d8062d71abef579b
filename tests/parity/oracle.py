"""The model in float64 numpy, from the paper and shared/golden/README.md; shares no code with the package.

Weights are torch tensors by merged checkpoint name. Shapes come from the weights, and everything else from `Shape`. One
conversation at a time, without packing or padding, with loops where that is simpler.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import erf

Weights = dict[str, np.ndarray]
NEWLINE = 7


class Shape(NamedTuple):
    """Settings that the weights do not determine."""

    vision_heads: int
    sound_heads: int
    heads: int
    kv_heads: int
    rope_theta: float
    scales: tuple[int, ...]  # tiles along one side of each scale
    pool: tuple[int, int, int]
    compression: str
    rotated: int  # channels of the time embedding
    max_time: float
    group_seconds: float
    window_seconds: float


class Image(NamedTuple):
    """Tiles of all scales, and rows and columns of the largest; None for a single tile."""

    tiles: np.ndarray
    block: tuple[int, int] | None


class Sound(NamedTuple):
    """Log-mel windows [n, frames, mels] and the seconds of sound in them."""

    windows: np.ndarray
    seconds: float


class Video(NamedTuple):
    """Frames (one tile each), their times, the duration of the pictures, and the sound, if any."""

    frames: np.ndarray
    times: list[float]
    seconds: float
    sound: Sound | None


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    y = x @ w[f"{name}.weight"].astype(np.float64).T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: Weights, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def self_attention(w: Weights, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    """Attends in both directions; x is [positions, width]."""
    q, k, v = (linear(w, f"{name}.{part}_proj", x) for part in "qkv")
    width = q.shape[1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        out.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(width)) @ v[:, part])
    return linear(w, f"{name}.out_proj", np.concatenate(out, 1))


def siglip(w: Weights, shape: Shape, tile: np.ndarray) -> np.ndarray:
    """Returns features [grid, grid, C] of one tile [P, P, 3] in 0 … 255: the output of the second-to-last layer."""
    prefix = "vision_tower.vision_tower"
    kernel = w[f"{prefix}.embeddings.patch_embedding.weight"].astype(np.float64)
    patch, grid = kernel.shape[-1], tile.shape[0] // kernel.shape[-1]
    pixels = (tile.astype(np.float64) / 255 - 0.5) / 0.5
    x = []
    for row in range(grid):
        for column in range(grid):
            piece = pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            x.append(np.einsum("hwc,ochw->o", piece, kernel))
    x = np.array(x) + w[f"{prefix}.embeddings.patch_embedding.bias"]
    x = x + w[f"{prefix}.embeddings.position_embedding.weight"]
    layers = sum(name.startswith(prefix) and name.endswith("layer_norm1.weight") for name in w)
    for index in range(layers - 1):
        layer = f"{prefix}.encoder.layers.{index}"
        y = layer_norm(w, f"{layer}.layer_norm1", x, 1e-6)
        x = x + self_attention(w, f"{layer}.self_attn", y, shape.vision_heads)
        y = layer_norm(w, f"{layer}.layer_norm2", x, 1e-6)
        x = x + linear(w, f"{layer}.mlp.fc2", gelu_tanh(linear(w, f"{layer}.mlp.fc1", y)))
    return x.reshape(grid, grid, -1)


def area_resize(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Applies adaptive average pooling of [h, w, C] to [rows, columns, C]."""
    height, width, _ = x.shape
    out = np.empty((rows, columns, x.shape[2]))
    for i in range(rows):
        top, bottom = i * height // rows, -(-(i + 1) * height // rows)
        for j in range(columns):
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            out[i, j] = x[top:bottom, left:right].mean((0, 1))
    return out


def join(tiles: list[np.ndarray], rows: int, columns: int) -> np.ndarray:
    return np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], 1) for r in range(rows)], 0)


def project_tile(w: Weights, x: np.ndarray) -> np.ndarray:
    """Applies 2x2 space-to-depth (odd grids are padded with zeros), norm, MLP: [grid, grid, C] to [side, side, D]."""
    grid = x.shape[0]
    x = np.pad(x, ((0, grid % 2), (0, grid % 2), (0, 0)))
    side = x.shape[0] // 2
    out = np.empty((side, side, w["mm_projector.layers.4.bias"].shape[0]))
    for i in range(side):
        for j in range(side):
            block = np.concatenate([x[2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)])
            block = layer_norm(w, "mm_projector.layers.1", block, 1e-5)
            out[i, j] = linear(w, "mm_projector.layers.4", gelu(linear(w, "mm_projector.layers.2", block)))
    return out


def image_tokens(w: Weights, shape: Shape, image: Image) -> np.ndarray:
    features = [siglip(w, shape, tile) for tile in image.tiles]
    if image.block is None:
        outputs = [project_tile(w, np.concatenate([features[0]] * len(shape.scales), -1))]
        return outputs[0].reshape(-1, outputs[0].shape[-1])
    rows, columns = image.block
    maps = []
    for side in shape.scales[:-1]:
        maps.append(join(features[: side * side], side, side))
        features = features[side * side :]
    maps.append(join(features, rows, columns))
    height, width, _ = maps[-1].shape
    merged = np.concatenate([area_resize(scale, height, width) for scale in maps], -1)
    grid = height // rows
    cut = [merged[r * grid : (r + 1) * grid, c * grid : (c + 1) * grid] for r in range(rows) for c in range(columns)]
    joined = join([project_tile(w, tile) for tile in cut], rows, columns)
    return joined.reshape(-1, joined.shape[-1])


def sound_tokens(w: Weights, shape: Shape, sound: Sound) -> np.ndarray:
    tokens = []
    for window in sound.windows.astype(np.float64):
        x = gelu(conv(w, "sound_tower.conv1", window, 1))
        x = gelu(conv(w, "sound_tower.conv2", x, 2)) + w["sound_tower.embed_positions.weight"]
        layers = sum(name.startswith("sound_tower.") and name.endswith(".fc1.weight") for name in w)
        for index in range(layers):
            layer = f"sound_tower.layers.{index}"
            y = layer_norm(w, f"{layer}.self_attn_layer_norm", x, 1e-5)
            x = x + self_attention(w, f"{layer}.self_attn", y, shape.sound_heads)
            y = layer_norm(w, f"{layer}.final_layer_norm", x, 1e-5)
            x = x + linear(w, f"{layer}.fc2", gelu(linear(w, f"{layer}.fc1", y)))
        x = layer_norm(w, "sound_tower.layer_norm", (x[0::2] + x[1::2]) / 2, 1e-5)
        if shape.compression != "none":
            pairs = x[: len(x) // 2 * 2].reshape(-1, 2, x.shape[1])
            x = pairs.max(1) if shape.compression == "max" else pairs.mean(1)
        tokens.append(linear(w, "sound_mm_projector.layers.2", gelu(linear(w, "sound_mm_projector.layers.0", x))))
    tokens = np.concatenate(tokens)
    length = len(sound.windows) * shape.window_seconds
    times = [(k + 0.5) * length / len(tokens) for k in range(len(tokens))]
    return np.array([rotate_in_time(shape, token, time) for token, time in zip(tokens, times, strict=True)])


def conv(w: Weights, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    """Convolves [time, channels] with kernel 3 and padding 1."""
    x = np.pad(x, ((1, 1), (0, 0)))
    kernel = w[f"{name}.weight"].astype(np.float64)
    starts = range(0, len(x) - 2, stride)
    return np.array([np.einsum("tc,oct->o", x[s : s + 3], kernel) for s in starts]) + w[f"{name}.bias"]


def rotate_in_time(shape: Shape, token: np.ndarray, time: float) -> np.ndarray:
    """Applies Equations (4) and (5), θ = 5, to the first channels."""
    out = token.copy()
    for i in range(0, shape.rotated, 2):
        a, b = (2 * math.pi / (shape.max_time * 5 ** (c / shape.rotated)) * time for c in (i, i + 1))
        out[i] = token[i] * math.cos(a) - token[i + 1] * math.sin(a)
        out[i + 1] = token[i + 1] * math.cos(b) + token[i] * math.sin(b)
    return out


def frame_tokens(w: Weights, shape: Shape, video: Video) -> np.ndarray:
    """Returns a video's frame tokens: projected, pooled in time and space, then rotated by the pool's mean time."""
    maps = []
    for frame in video.frames:
        features = siglip(w, shape, frame)
        maps.append(project_tile(w, np.concatenate([features] * len(shape.scales), -1)))
    x, times = np.array(maps), list(video.times)
    t, h, v = shape.pool
    remainder = len(x) % t
    if remainder:
        # Pads with a single value: the mean of the remaining frames.
        x = np.concatenate([x, np.full((t - remainder, *x.shape[1:]), x[-remainder:].mean())])
        times += [float(np.mean(times[-remainder:]))] * (t - remainder)
    n, height, width, channels = x.shape
    x = x.reshape(n // t, t, height // h, h, width // v, v, channels).mean((1, 3, 5))
    times = np.reshape(times, (-1, t)).mean(1)
    return np.array(
        [
            rotate_in_time(shape, token, time)
            for pooled, time in zip(x, times, strict=True)
            for token in pooled.reshape(-1, channels)
        ]
    )


def video_stream(w: Weights, shape: Shape, video: Video) -> list[np.ndarray]:
    """Lays out a video with sound in temporal groups, with a newline after the vision and the audio of each."""
    vision, newline = frame_tokens(w, shape, video), w["llm.model.embed_tokens.weight"][[NEWLINE]]
    if video.sound is None:
        return [vision]
    audio = sound_tokens(w, shape, video.sound)
    mel_frames = len(video.sound.windows) * video.sound.windows.shape[1]
    per_second = mel_frames / (len(video.sound.windows) * shape.window_seconds)
    end, stream, vision_start, audio_start = max(video.seconds, video.sound.seconds), [], 0, 0
    for group in range(math.ceil(end / shape.group_seconds)):
        limit = (group + 1) * shape.group_seconds
        last = limit >= end
        frames = len(video.times) if last else sum(time < limit for time in video.times)
        vision_end = math.ceil(frames * len(vision) / len(video.times))
        mels = min(round(min(limit, end) * per_second), mel_frames)
        audio_end = math.ceil(mels * len(audio) / mel_frames)
        stream += [vision[vision_start:vision_end], newline, audio[audio_start:audio_end], newline]
        vision_start, audio_start = vision_end, audio_end
    return stream


def decoder_inputs(w: Weights, shape: Shape, items: list) -> np.ndarray:
    """Returns the decoder's inputs of `items`: lists of token ids, images, sounds and videos, in order."""
    table, segments = w["llm.model.embed_tokens.weight"].astype(np.float64), []
    for item in items:
        if isinstance(item, Image):
            segments += [image_tokens(w, shape, item), table[[NEWLINE]]]
        elif isinstance(item, Sound):
            segments.append(sound_tokens(w, shape, item))
        elif isinstance(item, Video):
            segments += video_stream(w, shape, item)
        else:
            segments.append(table[list(item)])
    return np.concatenate(segments)


def logits(w: Weights, shape: Shape, x: np.ndarray) -> np.ndarray:
    layers = sum(name.endswith("input_layernorm.weight") for name in w)
    for index in range(layers):
        layer = f"llm.model.layers.{index}"
        x = x + causal_attention(w, shape, f"{layer}.self_attn", rms_norm(w, f"{layer}.input_layernorm", x))
        y = rms_norm(w, f"{layer}.post_attention_layernorm", x)
        gate = linear(w, f"{layer}.mlp.gate_proj", y)
        gate = gate / (1 + np.exp(-gate))
        x = x + linear(w, f"{layer}.mlp.down_proj", gate * linear(w, f"{layer}.mlp.up_proj", y))
    return linear(w, "llm.lm_head", rms_norm(w, "llm.model.norm", x))


def causal_attention(w: Weights, shape: Shape, name: str, x: np.ndarray) -> np.ndarray:
    q, k, v = (linear(w, f"{name}.{part}_proj", x) for part in "qkv")
    width, length = q.shape[1] // shape.heads, len(x)
    mask = np.where(np.arange(length)[:, None] >= np.arange(length), 0.0, -np.inf)
    out = []
    for head in range(shape.heads):
        kv = head * shape.kv_heads // shape.heads
        query = rope(shape, q[:, head * width : (head + 1) * width])
        key = rope(shape, k[:, kv * width : (kv + 1) * width])
        weights = softmax(query @ key.T / math.sqrt(width) + mask)
        out.append(weights @ v[:, kv * width : (kv + 1) * width])
    return linear(w, f"{name}.o_proj", np.concatenate(out, 1))


def rope(shape: Shape, x: np.ndarray) -> np.ndarray:
    length, width = x.shape
    angles = np.arange(length)[:, None] / shape.rope_theta ** (np.arange(0, width, 2) / width)
    first, second = x[:, : width // 2], x[:, width // 2 :]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], 1
    )
