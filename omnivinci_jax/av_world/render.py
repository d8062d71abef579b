"""Renders a clip's frames and sound: large bright shapes on a dark ground, one at a time; eight simple sounds."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from omnivinci_jax.av_world.timeline import Clip

FRAME_RATE = 12  # Hz
SAMPLE_RATE = 16_000  # Hz
RGB = {
    "red": (230, 20, 20),
    "green": (20, 190, 40),
    "blue": (40, 60, 255),
    "yellow": (250, 235, 30),
    "magenta": (235, 30, 225),
    "cyan": (30, 225, 235),
    "white": (250, 250, 250),
    "orange": (255, 130, 0),
}

# Signed distances in half sides: below 1 inside. `x` and `y` are pixels from the centre, y downwards.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": np.hypot,
    "square": lambda x, y: np.maximum(abs(x), abs(y)),
    "triangle": lambda x, y: np.maximum(y, (2 * abs(x) - y - 1) / np.sqrt(np.float32(5)) + 1),
}


def render_frames(clip: Clip) -> UInt8[np.ndarray, "frames height width 3"]:
    """Renders the frames of the clip at FRAME_RATE."""
    rng = clip.rng("render")
    width, height = clip.size
    times = np.arange(round(clip.duration * FRAME_RATE)) / FRAME_RATE
    ground = rng.integers(8, 36, size=3)
    frames = np.broadcast_to(ground, (len(times), height, width, 3)).astype(np.float32)
    phases, speeds = rng.uniform(0, 2 * np.pi, size=2), rng.uniform(0.5, 1.5, size=2)
    wander = (0.5 + 0.42 * np.sin(np.outer(times, speeds) * 2 + phases)) * (width, height)
    draw_shape(frames, "circle", ground + 45, 0.05 * min(clip.size), wander)
    for event in clip.sights:
        shown = slice(*np.searchsorted(times, (event.start, event.end)))
        half_side = rng.uniform(0.21, 0.275) * min(clip.size)
        corners = rng.uniform(half_side, np.array(clip.size) - half_side, size=(2, 2))
        progress = ((times[shown] - event.start) / (event.end - event.start))[:, None]
        path = corners[0] * (1 - progress) + corners[1] * progress
        draw_shape(frames[shown], rng.choice(list(SHAPES)), np.array(RGB[event.name]), half_side, path)
    return frames.round().astype(np.uint8)


def draw_shape(
    frames: Float[np.ndarray, "frames height width 3"],
    shape: str,
    colour: Int[np.ndarray, " 3"],
    half_side: float,
    centres: Float[np.ndarray, "frames 2"],
) -> None:
    """Draws into the frames, with soft edges; centres are (x, y) in pixels."""
    reach, colour = half_side + 2, colour.astype(np.float32)  # soft edges of a triangle's corners are 1.2 pixels wide
    for frame, centre in zip(frames, centres.astype(np.float32), strict=True):
        first, last = np.maximum(centre - reach, 0).astype(int), np.maximum(centre + reach, 0).astype(int)
        box = frame[first[1] : last[1], first[0] : last[0]]
        height, width, _ = box.shape
        x = np.arange(first[0], first[0] + width, dtype=np.float32) + 0.5 - centre[0]
        y = np.arange(first[1], first[1] + height, dtype=np.float32)[:, None] + 0.5 - centre[1]
        distance = half_side * (SHAPES[shape](x / half_side, y / half_side) - 1)
        box += np.clip(0.5 - distance, 0, 1)[..., None] * (colour - box)


def render_sound(
    rng: np.random.Generator, name: str, seconds: float, rate: int = SAMPLE_RATE
) -> Float[np.ndarray, " samples"]:
    """Renders one sound at full level (about ±1), faded over 15 ms at both ends."""
    time = np.arange(round(seconds * rate)) / rate
    wave = WAVES[name](time, rng)
    return wave * np.clip(np.minimum(time, time[-1] - time) / 0.015, 0, 1)


def render_waveform(clip: Clip) -> Float[np.ndarray, " samples"]:
    """Renders the sounds of the clip at SAMPLE_RATE, over noise of a random low level."""
    rng = clip.rng("render")
    samples = round(clip.duration * SAMPLE_RATE)
    waveform = 10 ** rng.uniform(-3.5, -2) * rng.standard_normal(samples)
    for event in clip.sounds:
        sound = rng.uniform(0.3, 0.7) * render_sound(rng, event.name, event.end - event.start)
        start = round(event.start * SAMPLE_RATE)
        waveform[start : start + len(sound)] += sound[: samples - start]
    return waveform.astype(np.float32)


def _sine(frequency: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda time, rng: np.sin(2 * np.pi * frequency * rng.uniform(0.97, 1.03) * time)


def _square(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    harmonics = np.arange(1, 16, 2)[:, None]
    return (np.sin(2 * np.pi * 110 * rng.uniform(0.97, 1.03) * harmonics * time) / harmonics).sum(axis=0)


def _siren(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sweeps up and down between 500 and 2000 Hz, three times a second."""
    phase = 1250 * time - 750 * np.sin(2 * np.pi * 3 * time) / (2 * np.pi * 3)
    return np.sin(2 * np.pi * phase)


def _clicks(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes twelve short bursts of noise a second."""
    return 0.5 * rng.standard_normal(len(time)) * np.exp(-(time % (1 / 12)) / 0.006)


WAVES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "hum": _sine(220),
    "tone": _sine(500),
    "beep": _sine(1100),
    "whistle": _sine(2600),
    "hiss": lambda time, rng: 0.4 * rng.standard_normal(len(time)),
    "buzz": _square,
    "siren": _siren,
    "clicks": _clicks,
}
