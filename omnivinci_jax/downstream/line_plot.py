"""Line plots of series (Appendix B.5.2), drawn with Pillow."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

SIDE, MARGIN, WIDTH = 448, 20, 6  # pixels of the picture, around the plot, and of a line
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")


def line_plot(
    values: Float[np.ndarray, "curves length"],
    limits: tuple[float, float] | None = None,
    levels: Sequence[float] = (),
) -> UInt8[np.ndarray, "448 448 3"]:
    """Draws every curve in a colour of its own, with a gap wherever a value is NaN.

    Args:
        values: the curves, over a common horizontal axis.
        limits: lowest and highest value of the vertical axis; by default those of the curves.
        levels: values at which a thin grey line crosses the plot.
    """
    known = values[np.isfinite(values)]
    low, high = limits or ((known.min(), known.max()) if known.size else (0.0, 1.0))
    inside = SIDE - 2 * MARGIN

    def height(values: np.ndarray) -> np.ndarray:
        position = (np.clip(values, low, high) - low) / (high - low) if high > low else 0 * values + 0.5
        return SIDE - MARGIN - inside * position

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for y in height(np.array(levels, float)).tolist():
        draw.line([(MARGIN, y), (SIDE - MARGIN, y)], fill="#c0c0c0", width=WIDTH // 3)
    x = MARGIN + inside * np.arange(values.shape[1]) / max(values.shape[1] - 1, 1)
    for index, curve in enumerate(values):
        points = np.stack([x, height(curve)], axis=1)
        gaps = np.flatnonzero(np.isnan(curve))
        for piece in np.split(points, gaps):
            piece = piece[np.isfinite(piece[:, 1])]
            if len(piece) > 1:
                draw.line([tuple(point) for point in piece.tolist()], COLOURS[index % 10], WIDTH, joint="curve")
            elif len(piece):
                (px, py), radius = piece[0].tolist(), WIDTH / 2
                draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=COLOURS[index % 10])
    return np.array(picture)
