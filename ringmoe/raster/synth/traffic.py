"""Vehicles that drive on the roads and keep clear of each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ringmoe.raster.synth.boxes import Box
from ringmoe.raster.synth.covers import PAINTS
from ringmoe.raster.synth.fields import Array
from ringmoe.raster.synth.roads import Road

# T frames; lengths in pixels, and one pixel is one metre

_TRUCKS = 0.15
_LANE = 0.48  # middle of the right-hand lane, as a share of the road's half width
_GAP = 3.0  # between two vehicles
_NEAR = 2.0  # how far ahead and behind a vehicle the road gives its direction


@dataclass(frozen=True)
class Vehicle:
    """A vehicle that follows a road on the right-hand lane at constant speed.

    Attributes:
        road: Index of its road.
        start: Where it is at time 0, along the road.
        speed: Metres a second; negative against the road's direction.
        box: Its size and paint.
    """

    road: int
    start: float
    speed: float
    box: Box

    def at(self, roads: Sequence[Road], seconds: float) -> Box | None:
        """Where it is after so many seconds; None when it has left its road."""
        road = roads[self.road]
        along = self.start + self.speed * seconds
        if not _NEAR < along < road.length - _NEAR:
            return None
        forward = np.sign(self.speed) * (road.at(along + _NEAR) - road.at(along - _NEAR))
        forward /= np.hypot(*forward)
        x, y = road.at(along) + _LANE * road.half_width * np.array([-forward[1], forward[0]])
        return replace(self.box, x=float(x), y=float(y), angle=float(np.arctan2(forward[1], forward[0])))


def traffic(rng: np.random.Generator, roads: Sequence[Road], times_T: Array, number: int) -> tuple[Vehicle, ...]:
    """Draws vehicles that keep clear of each other at all the times given; fewer where the roads are full."""
    vehicles: list[Vehicle] = []
    others: list[list[Box]] = [[] for _ in times_T]
    for _ in range(4 * number):
        vehicle = _draw(rng, roads, track=len(vehicles) + 1)
        way = [vehicle.at(roads, float(seconds)) for seconds in times_T]
        if way[0] is None or not all(map(_clear, way, others)):
            continue
        vehicles.append(vehicle)
        for here, there in zip(way, others, strict=True):
            there += [] if here is None else [here]
        if len(vehicles) == number:
            break
    return tuple(vehicles)


def _draw(rng: np.random.Generator, roads: Sequence[Road], track: int) -> Vehicle:
    """A car or truck anywhere; three times as often on main roads, where it is faster."""
    weights = np.array([road.length * (3.0 if road.main else 1.0) for road in roads])
    road = int(rng.choice(len(roads), p=weights / weights.sum()))
    length, width = (rng.uniform(9.0, 13.0), 2.6) if rng.random() < _TRUCKS else (rng.uniform(4.2, 5.4), 2.0)
    speed = rng.choice((-1.0, 1.0)) * (rng.uniform(12, 20) if roads[road].main else rng.uniform(6, 11))
    box = Box("vehicle", 0.0, 0.0, float(length), width, 0.0, style=int(rng.integers(len(PAINTS))), track=track)
    return Vehicle(road, float(rng.uniform(0, roads[road].length)), float(speed), box)


def _clear(here: Box | None, others: list[Box]) -> bool:
    """Whether no other vehicle is within reach of this one."""
    return here is None or all(
        np.hypot(here.x - other.x, here.y - other.y) > _GAP + (here.length + other.length) / 2 for other in others
    )
