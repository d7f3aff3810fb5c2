"""The curves of a run, drawn from its ``metrics.jsonl``."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ringmoe.errors import ConfigError
from ringmoe.report.canvas import COLOURS, new_figure

Row = Mapping[str, float]

_FEW_POINTS = 60  # below it each point is drawn; above it a running mean


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.jsonl``; numbers that were not finite, null there, are NaN.

    Raises:
        ConfigError: The file is missing or a line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: no curves to read ({error.strerror}); give the folder of a training run") from error
    try:
        rows = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not a file of one JSON object a line: {error}") from error
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def series(rows: Iterable[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have ``name``."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def curves_figure(rows: Sequence[Row], *, title: str = "") -> Figure:
    """Draws loss per modality, held-out error over its baseline, balance per family, learning rate and gradient norm.

    Args:
        rows: Rows of ``metrics.jsonl``; a panel whose rows are missing is left out.
        title: What stands above the panels.
    """
    panels = [
        ("masked error in training", _names(rows, "loss/"), "log"),
        ("held-out masked error / visible-mean baseline", _names(rows, "val_ratio/"), "linear"),
        ("balance loss", _names(rows, "balance/"), "linear"),
        ("learning rate", ["lr"], "linear"),
        ("gradient norm", ["gradient_norm"], "log"),
    ]
    panels = [(label, names, scale) for label, names, scale in panels if any(series(rows, name)[0] for name in names)]
    num_rows = (len(panels) + 1) // 2
    figure = new_figure(10.5, 0.4 + 2.9 * num_rows)
    if title:
        figure.suptitle(title, fontsize=11)
    axes = list(np.ravel(figure.subplots(num_rows, 2, squeeze=False)))
    for axis, (label, names, scale) in zip(axes, panels, strict=False):
        _draw(axis, rows, names)
        axis.set(title=label, xlabel="step", yscale=scale)
        if label.startswith("held-out"):
            axis.axhline(1.0, color="0.4", linewidth=1, linestyle="--")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _names(rows: Iterable[Row], prefix: str) -> list[str]:
    """Names that begin with ``prefix``, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)))


def _draw(axis: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Each series as a thin raw line, with gaps where it is not finite, under its running mean; few points as dots."""
    for name, colour in zip(names, COLOURS * len(names), strict=False):
        steps, values = series(rows, name)
        label = name.partition("/")[2]
        if name == "lr" or len(values) < _FEW_POINTS:
            marker = "o" if len(values) < _FEW_POINTS else None
            axis.plot(steps, values, marker=marker, markersize=3, color=colour, linewidth=1.2, label=label)
            continue
        axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.25)
        finite = np.isfinite(values)
        if not finite.any():
            continue
        window = max(1, int(finite.sum()) // (_FEW_POINTS // 2))
        smooth = np.convolve(np.compress(finite, values), np.ones(window) / window, mode="valid")
        axis.plot(np.compress(finite, steps)[window - 1 :], smooth, color=colour, linewidth=1.4, label=label)
    axis.grid(True, color="0.9", linewidth=0.6)
    axis.tick_params(labelsize=8)
    axis.title.set_fontsize(9)
    if len(names) > 1:
        axis.legend(fontsize=8, frameon=False)
