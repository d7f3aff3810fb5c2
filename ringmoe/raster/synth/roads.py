"""Settlements, the roads that join them, and their streets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ringmoe.raster.synth.fields import Array, blur
from ringmoe.raster.synth.paths import CELL, arc_lengths, cheapest, line_field, smooth

# H rows, W columns, N points of a line as (x, y); lengths in pixels, and one pixel is one metre


_MAIN_HALF_WIDTH = 4.0
_STREET_HALF_WIDTH = 2.4
_BRIDGE_COST = 14.0
_SLOPE_COST = 40.0
_SHARED_ROAD = 0.4  # an existing road is that much cheaper, so that ways join


@dataclass(frozen=True)
class Settlement:
    """A town: a disc with a grid of streets.

    Attributes:
        x: Column of its centre.
        y: Row of its centre.
        radius: How far its streets go.
        angle: Direction of one of the two families of streets, radians.
        spacing: Distance of neighbouring streets.
    """

    x: float
    y: float
    radius: float
    angle: float
    spacing: float

    @property
    def axes_22(self) -> Array:
        """The two unit vectors of its street grid."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.array([[cos, sin], [-sin, cos]])


@dataclass(frozen=True)
class Road:
    """A road or street: its middle line and how far it reaches to both sides."""

    points_N2: Array
    half_width: float
    main: bool

    @property
    def length(self) -> float:
        """Length along the middle line."""
        return float(arc_lengths(self.points_N2)[-1])

    def at(self, along: float) -> Array:
        """(2,) point of the middle line at this length."""
        lengths = arc_lengths(self.points_N2)
        return np.array([np.interp(along, lengths, self.points_N2[:, i]) for i in (0, 1)])


def settle(rng: np.random.Generator, elevation_HW: Array, water_HW: Array, number: int) -> tuple[Settlement, ...]:
    """Finds flat dry ground for settlements: the best of many random places, far from those found before."""
    size = len(elevation_HW)
    near_water_HW = blur(water_HW, 14.0)
    steep_HW = blur(np.hypot(*np.gradient(elevation_HW)), 14.0)
    found: list[Settlement] = []
    for _ in range(number):
        xy = rng.uniform(0.2 * size, 0.8 * size, (256, 2))
        cost = steep_HW[xy[:, 1].astype(int), xy[:, 0].astype(int)] / steep_HW.mean()
        cost += 60.0 * near_water_HW[xy[:, 1].astype(int), xy[:, 0].astype(int)]
        for other in found:
            cost += 5.0 * np.maximum(0.0, 1.0 - np.hypot(*(xy - (other.x, other.y)).T) / (0.45 * size))
        x, y = (xy[cost.argmin()] // CELL + 0.5) * CELL  # where roads can meet
        radius = float(np.clip(rng.uniform(0.14, 0.21) * size, 60.0, 170.0))
        found.append(Settlement(float(x), float(y), radius, rng.uniform(0, np.pi / 2), rng.uniform(46, 60)))
    return tuple(found)


def main_roads(
    rng: np.random.Generator, elevation_HW: Array, water_HW: Array, towns: Sequence[Settlement]
) -> tuple[Road, ...]:
    """Roads from town to town and out over each border: cheapest ways that avoid slopes and pay for bridges."""
    cells = len(elevation_HW) // CELL
    middle = slice(CELL // 2, cells * CELL, CELL)
    slope_HW = np.hypot(*np.gradient(blur(elevation_HW, 4.0)))
    cost_HW = 1.0 + _SLOPE_COST * slope_HW[middle, middle] + _BRIDGE_COST * water_HW[middle, middle]
    centres = [(int(town.y) // CELL, int(town.x) // CELL) for town in towns]
    ways = [(start, end, (0, 0)) for start, end in pairwise(centres)]
    for i, outwards in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
        at = int(rng.integers(cells // 8, cells - cells // 8))
        row, col = (at if step == 0 else 0 if step < 0 else cells - 1 for step in outwards)
        ways.append((centres[i % len(centres)], (row, col), outwards))
    roads = []
    for start, end, outwards in ways:
        path = cheapest(cost_HW, start, end)
        for cell in path:
            cost_HW[cell] = _SHARED_ROAD
        beyond = (end[0] + 2 * outwards[0], end[1] + 2 * outwards[1])
        points_N2 = (np.array([*path, beyond], dtype=float)[:, ::-1] + 0.5) * CELL
        roads.append(Road(smooth(points_N2, 11, 4.0), _MAIN_HALF_WIDTH, True))
    return tuple(roads)


def streets(town: Settlement, water_HW: Array) -> tuple[Road, ...]:
    """A grid of streets: two axes through the centre, and from each point of an axis a street to either side.

    Every street starts on an axis and ends at water, at the edge of the town or of the raster, so all are connected.
    """
    centre = np.array([town.x, town.y])
    lanes: list[Array] = []
    for first, second in (town.axes_22, town.axes_22[::-1]):
        for sign in (-1.0, 1.0):
            axis_N2 = _ray(centre, sign * first, town, water_HW)
            lanes.append(axis_N2)
            for along in np.arange(town.spacing, arc_lengths(axis_N2)[-1], town.spacing):
                foot = centre + along * sign * first
                lanes += [_ray(foot, side * second, town, water_HW) for side in (-1.0, 1.0)]
    return tuple(Road(points_N2, _STREET_HALF_WIDTH, False) for points_N2 in lanes if len(points_N2) > 4)


def _ray(start: Array, direction: Array, town: Settlement, water_HW: Array) -> Array:
    """A straight street from ``start`` until water, the edge of the town, or just inside the raster's."""
    size = len(water_HW)
    points_N2: Array = start + np.arange(0.0, 2.0 * town.radius, 4.0)[:, None] * direction
    inside = np.hypot(*(points_N2 - (town.x, town.y)).T) < town.radius
    inside &= ((points_N2 > 6) & (points_N2 < size - 6)).all(axis=1)
    cols, rows = np.clip(points_N2.astype(int), 0, size - 1).T
    stop = np.flatnonzero(~inside | water_HW[rows, cols])
    return points_N2[: stop[0]] if len(stop) else points_N2


def road_surface(roads: Sequence[Road], size: int) -> tuple[Array, Array]:
    """Pixels of all roads, and those of the dashed line in the middle of the main ones; two (H, W) bool."""
    surface_HW, dashes_HW = np.zeros((2, size, size), dtype=bool)
    for road in roads:
        field = line_field(road.points_N2, size, road.half_width)
        surface_HW |= np.isfinite(field.distance_HW)
        if road.main:
            dashes_HW |= (field.distance_HW < 0.55) & (field.along_HW % 9.0 < 4.0)
    return surface_HW, dashes_HW
