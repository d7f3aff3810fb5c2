"""Where houses, halls, farmsteads and ships stand: candidates in the order in which they are tried."""

from collections.abc import Iterator, Sequence

import numpy as np

from ringmoe.raster.synth.boxes import Box
from ringmoe.raster.synth.covers import HULLS
from ringmoe.raster.synth.fields import Array
from ringmoe.raster.synth.roads import Road, Settlement

# lengths in pixels, and one pixel is one metre

_CLAY, _WEATHERED, _SLATE, _CONCRETE, _WHITE, _METAL = range(6)


def houses(rng: np.random.Generator, town: Settlement) -> Iterator[Box]:
    """Houses in rows along the streets of a town; higher blocks with flat roofs near its centre.

    The candidates overlap: ``place`` keeps those that still find room.
    """
    lines = int(town.radius / town.spacing) + 1
    for turn, (first, second) in enumerate((town.axes_22, town.axes_22[::-1])):
        for street in range(-lines, lines + 1):
            for side in (-1.0, 1.0):
                for along in np.arange(-town.radius, town.radius, 4.0):
                    core = np.hypot(along, street * town.spacing) < 0.45 * town.radius
                    length, width = rng.uniform(*((15, 30) if core else (9.5, 15))), rng.uniform(8.0, 13.0)
                    across = street * town.spacing + side * (rng.uniform(6.0, 9.0) + width / 2)
                    x, y = np.array([town.x, town.y]) + along * first + across * second
                    angle = town.angle + turn * np.pi / 2 + rng.normal(0.0, 0.03)
                    if np.hypot(along, across) < town.radius and rng.random() < 0.4:
                        yield _building(rng, x, y, length, width, angle, flat=bool(core and rng.random() < 0.6))


def halls(rng: np.random.Generator, roads: Sequence[Road], number: int) -> Iterator[Box]:
    """Large flat halls beside the main roads."""
    for _ in range(number):
        road = _main(rng, roads)
        x, y, angle = _beside(rng, road, rng.uniform(28, 44))
        length = rng.uniform(30, 58)
        roof = int(rng.choice((_CONCRETE, _WHITE, _METAL)))
        height, tone = rng.uniform(7.0, 13.0), rng.uniform(0.85, 1.1)
        yield Box("building", x, y, length, rng.uniform(18, 30), angle, height, style=roof, tone=tone)


def farms(rng: np.random.Generator, roads: Sequence[Road], number: int) -> Iterator[Box]:
    """Farmsteads: a few gabled buildings at right angles, away from the road."""
    for _ in range(number):
        x, y, angle = _beside(rng, _main(rng, roads), rng.uniform(30, 60))
        for i in range(int(rng.integers(2, 5))):
            shift = rng.uniform(12, 20) * np.array([np.cos(i * np.pi / 2), np.sin(i * np.pi / 2)])
            size = rng.uniform(14, 26), rng.uniform(9, 13)
            yield _building(rng, x + shift[0], y + shift[1], *size, angle + (i % 2) * np.pi / 2, flat=False)


def _building(
    rng: np.random.Generator, x: float, y: float, length: float, width: float, angle: float, *, flat: bool
) -> Box:
    """A house or block; its height follows from its kind."""
    height = rng.uniform(11.0, 26.0) if flat else rng.uniform(6.0, 10.0)
    roofs = (_SLATE, _CONCRETE, _WHITE) if flat else (_CLAY, _CLAY, _WEATHERED, _SLATE)
    style, tone = int(rng.choice(roofs)), float(rng.uniform(0.75, 1.2))
    return Box("building", float(x), float(y), length, width, angle, height, style=style, tone=tone, flat=flat)


def _main(rng: np.random.Generator, roads: Sequence[Road]) -> Road:
    """A main road, long ones more often."""
    mains = [road for road in roads if road.main]
    lengths = np.array([road.length for road in mains])
    return mains[int(rng.choice(len(mains), p=lengths / lengths.sum()))]


def _beside(rng: np.random.Generator, road: Road, away: float) -> tuple[float, float, float]:
    """A point beside a road, and the road's direction there."""
    i = int(rng.integers(len(road.points_N2) - 1))
    forward = road.points_N2[i + 1] - road.points_N2[i]
    forward = forward / np.hypot(*forward)
    x, y = road.points_N2[i] + rng.choice((-1.0, 1.0)) * away * np.array([-forward[1], forward[0]])
    return float(x), float(y), float(np.arctan2(forward[1], forward[0]))


def ships(rng: np.random.Generator, water_HW: Array, river_N2: Array, number: int) -> Iterator[Box]:
    """Ships on random water, mostly along the river; shorter ones the longer the search goes on."""
    rows, cols = np.nonzero(water_HW)
    for i in range(number):
        at = int(rng.integers(len(rows)))
        x, y = cols[at] + rng.random(), rows[at] + rng.random()
        near = int(np.clip(np.hypot(*(river_N2 - (x, y)).T).argmin(), 1, len(river_N2) - 2))
        along = river_N2[near + 1] - river_N2[near - 1]
        heading = np.arctan2(along[1], along[0]) + rng.normal(0.0, 0.25) + np.pi * rng.integers(2)
        length = rng.uniform(12, 60 - 40 * i / number)
        width = float(np.clip(length * rng.uniform(0.17, 0.26), 3.5, 10.0))
        style, tone = int(rng.integers(len(HULLS))), float(rng.uniform(0.8, 1.25))
        yield Box("ship", x, y, float(length), width, float(heading), style=style, tone=tone)
