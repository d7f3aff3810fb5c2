"""Histograms of a group's channels, from the mergeable statistics that lie beside the shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringmoe.data.entries import GroupEntry
from ringmoe.modality import ModalitySpec, Unit
from ringmoe.raster.picture import is_microwave
from ringmoe.raster.scene import Pixels
from ringmoe.raster.statistics import PERCENTILES, ChannelStatistics, Statistics
from ringmoe.report.axes import Tick, plain, round_steps

# K occupied bins of the statistics, B bars that are drawn

WIDTH, HEIGHT = 420, 170
_MOST_BARS = 100
_NUM_TICKS = 6
_COLOURS = {"R": "red", "G": "green", "B": "blue", "NIR": "purple"}
_OTHERS = ("blue", "orange", "green", "purple", "red", "teal", "brown", "grey")


@dataclass(frozen=True)
class Curve:
    """The outline of one channel's histogram.

    Attributes:
        name: The channel.
        colour: Name of a colour of the page.
        path: SVG path data.
    """

    name: str
    colour: str
    path: str


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        title: What the axis shows.
        curves: Channels.
        ticks: Marks of the axis.
    """

    title: str
    curves: tuple[Curve, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Row:
    """A channel in the table of a group.

    Attributes:
        name: The channel.
        count: Entries with data.
        numbers: Mean, standard deviation, smallest, percentiles, largest, as text.
    """

    name: str
    count: int
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class GroupView:
    """What is shown of a group of tiles.

    Attributes:
        title: The group in words.
        tiles: Tiles of each split.
        panels: Histograms.
        rows: One for each channel that has data.
    """

    title: str
    tiles: dict[str, int]
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]


COLUMNS = ("mean", "std", "min", *(f"{percent:g} %" for percent in PERCENTILES), "max")
"""Headings of ``Row.numbers``."""


def view(spec: ModalitySpec, found: GroupEntry, statistics: Statistics) -> GroupView:
    """Histograms and numbers of one group."""
    group = found.group
    named = [
        (number, name, channel)
        for number, (name, channel) in enumerate(zip(spec.measured, group.channels, strict=True))
        if channel is not None
    ]
    bands = [entry for entry in named if entry[1] in spec.channels]
    others = [entry for entry in named if entry[1] not in spec.channels]  # the power of complex bands
    in_decibels = is_microwave(spec) and not spec.is_complex and group.units != "db"
    panels = [
        _panel(f"{group.units}, decibels" if in_decibels else group.units, bands, statistics, group.units, in_decibels),
        _panel("power of all bands, decibels", others, statistics, "sigma0", True),
    ]
    return GroupView(
        title=str(group),
        tiles={split: num for split, num in found.tiles.items() if num},
        panels=tuple(panel for panel in panels if panel is not None),
        rows=tuple(_row(name, channel) for _, name, channel in named),
    )


def _row(name: str, channel: ChannelStatistics) -> Row:
    numbers = (channel.mean, channel.std, channel.minimum, *channel.percentiles, channel.maximum)
    return Row(name, channel.count, tuple(f"{number:.5g}" for number in numbers))


def _panel(
    title: str,
    named: Sequence[tuple[int, str, ChannelStatistics]],
    statistics: Statistics,
    units: Unit,
    in_decibels: bool,
) -> Panel | None:
    """Some channels over one axis, between their outermost percentiles; None where there is nothing to draw."""
    drawn = []
    for number, name, channel in named:
        values_K, counts_K = statistics.histogram(number)
        outermost = np.array([channel.percentiles[0], channel.percentiles[-1]])
        if in_decibels:
            values_K, counts_K = _decibels(values_K[values_K > 0], units), counts_K[values_K > 0]
            outermost = _decibels(np.maximum(outermost, 0.0), units)
            outermost = outermost[np.isfinite(outermost)]
        if len(values_K):
            drawn.append((name, values_K, counts_K, outermost))
    limits = np.concatenate([outermost for *_, outermost in drawn]) if drawn else np.empty(0)
    if not len(limits):
        return None
    low, high = float(limits.min()), float(limits.max())
    edges_B = _edges(low, high, whole=statistics.dtype.kind != "f" and not in_decibels)
    shares = [
        np.histogram(values_K, edges_B, weights=counts_K)[0] / counts_K.sum() for _, values_K, counts_K, _ in drawn
    ]
    highest = max(float(share_B.max()) for share_B in shares) or 1.0
    curves = tuple(
        Curve(name, _COLOURS.get(name, _OTHERS[place % len(_OTHERS)]), _path(share_B / highest))
        for place, ((name, *_), share_B) in enumerate(zip(drawn, shares, strict=True))
    )
    first, last = float(edges_B[0]), float(edges_B[-1])
    ticks = (Tick((at - first) / (last - first) * WIDTH, plain(at)) for at in round_steps(first, last, _NUM_TICKS))
    return Panel(title, curves, tuple(ticks))


def _decibels(values: Pixels, units: Unit) -> Pixels:
    with np.errstate(divide="ignore"):
        found: Pixels = (10.0 if units == "sigma0" else 20.0) * np.log10(values)
    return found


def _edges(low: float, high: float, *, whole: bool) -> Pixels:
    """Edges of the bars; those of integers hold the same number of integers each, else some would stand out."""
    if whole:
        step = max(-(-int(high - low + 1) // _MOST_BARS), 1)
        return np.arange(low - 0.5, high + step, step)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _MOST_BARS + 1)


def _path(heights_B: Pixels) -> str:
    """The outline of bars that are as high as this, 1 being all there is room for."""
    step = WIDTH / len(heights_B)
    parts = [f"M0 {HEIGHT}"]
    for place, height in enumerate(heights_B.tolist()):
        parts.append(f"V{HEIGHT * (1.0 - 0.96 * height):.1f}H{(place + 1) * step:.1f}")
    return "".join([*parts, f"V{HEIGHT}Z"])
