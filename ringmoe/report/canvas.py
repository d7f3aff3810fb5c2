"""Drawing without a screen: matplotlib figures to RGB arrays and PNG files. The look that all figures share."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]  # (H, W, 3)

DOTS_PER_INCH = 110
# one colour for each modality or family, in order; readable on white and by most colour-blind people (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b3a000")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn by Agg: no window system is asked for."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_rgb(figure: Figure) -> Rgb:
    """The figure as (H, W, 3) uint8."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure; the folder is made, an older file replaced at once and never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    figure.savefig(partial, format="png")
    partial.replace(path)
