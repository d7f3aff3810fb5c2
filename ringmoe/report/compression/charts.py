"""Where things stand in the drawings of the page: numbers only, the template draws."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ringmoe.report.axes import Tick, plain, round_steps
from ringmoe.report.compression.view import Heat, Layer, Spectrum
from ringmoe.report.expert_load import relative_load

CELL = 20  # side of a cell of the heat map
_ROW = 170  # height of a chart
_SLOT = 26  # width of one place of a chart
_FEWEST_WIDTH = 420
PANEL = (190, 96)  # of one block's spectra
_MOST_LOAD = 2.0  # times the fair share, as a power of two, where the colours end
# from no load over the fair share to the most; blue and orange, which colour-blind people tell apart
_LOW, _MIDDLE, _HIGH = (33, 102, 172), (246, 246, 244), (190, 84, 10)


@dataclass(frozen=True)
class Cell:
    """One expert of one layer in the heat map.

    Attributes:
        x: Left edge.
        y: Upper edge.
        colour: Of its load.
        title: What it shows, in words.
        count: Tokens that selected it.
        mark: ``unused``, ``gone`` (pruned), or nothing.
    """

    x: int
    y: int
    colour: str
    title: str
    count: int
    mark: str


@dataclass(frozen=True)
class Panel:
    """The heat map of one modality."""

    title: str
    width: int
    height: int
    cells: tuple[Cell, ...]
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    divider: int


@dataclass(frozen=True)
class Dot:
    """One value of a chart; ``series`` is the number of its colour."""

    x: float
    y: float
    series: int
    title: str


@dataclass(frozen=True)
class Chart:
    """Dots over places, from 0 upwards."""

    width: int
    height: int
    dots: tuple[Dot, ...]
    rows: tuple[Tick, ...]
    columns: tuple[Tick, ...]


@dataclass(frozen=True)
class Curve:
    """The singular values of one matrix; ``series`` is the number of its colour."""

    points: str
    series: int
    title: str


@dataclass(frozen=True)
class Spectra:
    """The singular values of one block's matrices; beyond ``known`` they were not computed."""

    title: str
    known: float
    curves: tuple[Curve, ...]
    columns: tuple[Tick, ...]
    caption: str


def heat_map(heat: Heat) -> list[Panel]:
    """A panel for each modality: rows are layers, columns its specialised and the collaborative experts."""
    load_LME = relative_load(np.asarray(heat.counts), heat.num_specialised)
    num_layers, _, num_experts = load_LME.shape
    names = [f"S{e}" if e < heat.num_specialised else f"C{e - heat.num_specialised}" for e in range(num_experts)]
    columns = tuple(Tick((e + 0.5) * CELL, name) for e, name in enumerate(names))
    every = 1 if num_layers <= 12 else 2
    rows = tuple(Tick((layer + 0.5) * CELL, str(layer)) for layer in range(0, num_layers, every))
    panels = []
    for m, key in enumerate(heat.modalities):
        cells = []
        for layer in range(num_layers):
            for e in range(num_experts):
                load, count = load_LME[layer, m, e], heat.counts[layer][m][e]
                gone = (layer, e) in heat.gone
                share = f"{load:.2f} x the fair share" if np.isfinite(load) else "its family got none"
                words = f"layer {layer}, {names[e]}: {count:,} tokens of {key}, {share}"
                mark = "gone" if gone else "" if count else "unused"
                title = words + (", pruned" if gone else ", unused" if not count else "")
                cells.append(Cell(e * CELL, layer * CELL, _colour(load), title, count, mark))
        panels.append(
            Panel(
                key,
                num_experts * CELL,
                num_layers * CELL,
                tuple(cells),
                columns,
                rows,
                heat.num_specialised * CELL if 0 < heat.num_specialised < num_experts else 0,
            )
        )
    return panels


def heat_key() -> list[tuple[str, str]]:
    """Colours of the heat map with what they stand for."""
    loads = {0.25: "1/4 or less", 0.5: "1/2", 1: "1", 2: "2", 4: "4 or more"}
    return [(_colour(load), words) for load, words in loads.items()]


def chart(values: Sequence[tuple[str, int, int, float]], places: Sequence[str], *, most: float | None = None) -> Chart:
    """Dots over places.

    Args:
        values: Of each dot its words, number of its place, number of its series, and value of 0 or more.
        places: Their names, from left to right.
        most: Where the axis ends; the largest value if None.
    """
    most = most or max((value for *_, value in values), default=1.0) * 1.08 or 1.0
    slot = max(_SLOT, _FEWEST_WIDTH / max(len(places), 1))
    several = len({series for _, _, series, _ in values}) > 1
    dots = tuple(
        Dot((place + 0.5) * slot + (8 * series - 4 if several else 0), _ROW * (1 - value / most), series, title)
        for title, place, series, value in values
    )
    rows = tuple(Tick(_ROW * (1 - value / most), plain(round(value, 10))) for value in round_steps(0, most, 4))
    columns = tuple(Tick((n + 0.5) * slot, name) for n, name in enumerate(places))
    return Chart(round(slot * len(places)), _ROW, dots, rows, columns)


def spectra(layers: Iterable[Layer]) -> list[Spectra]:
    """A panel for each block that was truncated."""
    found = []
    for layer in layers:
        if not layer.spectra:
            continue
        known = max(spectrum.places[-1] for spectrum in layer.spectra)
        curves = tuple(_curve(spectrum, layer.dim) for spectrum in layer.spectra)
        parts = []
        for matrix, same in groupby(layer.spectra, key=lambda spectrum: spectrum.matrix):
            energies = [spectrum.energy for spectrum in same]
            parts.append(f"{matrix} {100 * min(energies):.0f} to {max(energies):.0%}")
        columns = tuple(Tick(_across(place, layer.dim), str(place)) for place in sorted({1, known, layer.dim}))
        found.append(
            Spectra(f"block {layer.number}", _across(known, layer.dim), curves, columns, f"kept: {', '.join(parts)}")
        )
    return found


def _curve(spectrum: Spectrum, dim: int) -> Curve:
    points = " ".join(
        f"{_across(place, dim):.1f},{PANEL[1] * (1 - value):.1f}"
        for place, value in zip(spectrum.places, spectrum.values, strict=True)
    )
    title = f"{spectrum.expert}, {spectrum.matrix}: {spectrum.energy:.1%} of the squared norm kept"
    return Curve(points, int(spectrum.matrix != "W1"), title)


def _across(place: int, dim: int) -> float:
    return PANEL[0] * (place - 1) / max(dim - 1, 1)


def _colour(load: float) -> str:
    """The colour of a load: the logarithm of its ratio to the fair share decides; grey where no token came."""
    if not np.isfinite(load):
        return "#c9cdd2"
    power = np.clip(np.log2(load) if load > 0 else -_MOST_LOAD, -_MOST_LOAD, _MOST_LOAD) / _MOST_LOAD
    end = _LOW if power < 0 else _HIGH
    mixed = (round(middle + (other - middle) * abs(power)) for middle, other in zip(_MIDDLE, end, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)
