"""Maps of footprints: an overview, and close-ups where scenes lie together. Degrees, without coast lines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ringmoe.raster.scene import Pixels
from ringmoe.report.axes import Tick, plain, round_steps

# 4 corners, each longitude and latitude

_OVERVIEW_WIDTH, _CLOSE_UP_WIDTH = 1000, 450
_LOWEST, _HIGHEST = 0.4, 0.75  # height of a map over its width
_SMALLEST_SPAN = 0.02  # degrees
_MARGIN = 0.08
_MOST_SHAPES = 2000
_MOST_CLOSE_UPS = 6
_CELLS = 24  # of the overview; scenes in neighbouring ones lie together
_SMALL = 7.0  # pixels; what is smaller gets a dot


class Footprint(NamedTuple):
    """Where a scene lies.

    Attributes:
        number: Number of its modality, for the colour.
        name: The scene.
        corners_42: Longitude and latitude of its corners.
    """

    number: int
    name: str
    corners_42: Pixels


@dataclass(frozen=True)
class Shape:
    """A footprint.

    Attributes:
        number: Number of its modality.
        name: The scene.
        points: Corners as SVG points.
        dot: Its middle, where the outline is too small to be seen.
    """

    number: int
    name: str
    points: str
    dot: tuple[float, float] | None


@dataclass(frozen=True)
class Map:
    """One map.

    Attributes:
        title: What it shows.
        width: Pixels.
        height: Pixels.
        shapes: Footprints.
        lons: Marks of longitude.
        lats: Marks of latitude.
        total: Scenes in it, also those that are not drawn because there are too many.
    """

    title: str
    width: int
    height: float
    shapes: tuple[Shape, ...]
    lons: tuple[Tick, ...]
    lats: tuple[Tick, ...]
    total: int


def draw(located: Sequence[Footprint]) -> list[Map]:
    """An overview and up to six close-ups; nothing where no scene has a place."""
    if not located:
        return []
    scenes = [scene._replace(corners_42=_unwrapped(scene.corners_42)) for scene in located]
    overview = _Frame.around([scene.corners_42 for scene in scenes], _OVERVIEW_WIDTH)
    maps = [overview.map("all", scenes)]
    clusters = _clusters(scenes, overview)
    if len(clusters) > 1:
        for cluster in clusters[:_MOST_CLOSE_UPS]:
            frame = _Frame.around([scene.corners_42 for scene in cluster], _CLOSE_UP_WIDTH)
            if frame.width < overview.width / 4:
                lon, lat = frame.west + frame.width / 2, frame.south + frame.height / 2
                maps.append(
                    frame.map(f"around {_degrees(round(lon, 1), 'EW')}, {_degrees(round(lat, 1), 'NS')}", cluster)
                )
    return maps


@dataclass(frozen=True)
class _Frame:
    """A part of the globe in degrees, and the pixels it is drawn on."""

    west: float
    south: float
    width: float
    height: float
    pixels: int

    @classmethod
    def around(cls, corners: Sequence[Pixels], pixels: int) -> "_Frame":
        """The frame of some footprints with a margin, no slimmer than is good to look at."""
        all_N2 = np.concatenate(corners)
        (west, south), (east, north) = all_N2.min(axis=0), all_N2.max(axis=0)
        squeeze = _squeeze((south + north) / 2)
        width = max((east - west) * (1 + 2 * _MARGIN), _SMALLEST_SPAN)
        height = max((north - south) * (1 + 2 * _MARGIN), _SMALLEST_SPAN)
        width = max(width, height * squeeze / _HIGHEST)
        height = max(height, width * _LOWEST / squeeze)
        return cls(
            float(west + east - width) / 2, float(south + north - height) / 2, float(width), float(height), pixels
        )

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of a degree of longitude and of latitude."""
        across = self.pixels / self.width
        return across, across * _squeeze(self.south + self.height / 2)

    def map(self, title: str, scenes: Sequence[Footprint]) -> Map:
        """Draws footprints; of very many an even choice."""
        across, up = self.scale
        step = max(len(scenes) / _MOST_SHAPES, 1.0)
        drawn = [scenes[int(place * step)] for place in range(int(len(scenes) / step))]
        lons = round_steps(self.west, self.west + self.width, 7)
        lats = [lat for lat in round_steps(self.south, self.south + self.height, 5) if abs(lat) <= 90]
        return Map(
            title=title,
            width=self.pixels,
            height=round(self.height * up, 1),
            shapes=tuple(self._shape(*scene) for scene in drawn),
            lons=tuple(Tick((lon - self.west) * across, _degrees(lon, "EW")) for lon in lons),
            lats=tuple(Tick((self.south + self.height - lat) * up, _degrees(lat, "NS")) for lat in lats),
            total=len(scenes),
        )

    def _shape(self, number: int, name: str, corners_42: Pixels) -> Shape:
        across, up = self.scale
        at_42 = np.stack(
            ((corners_42[:, 0] - self.west) * across, (self.south + self.height - corners_42[:, 1]) * up), axis=1
        )
        x, y = at_42.mean(axis=0).round(1).tolist()
        points = " ".join(f"{left:.2f},{top:.2f}" for left, top in at_42.tolist())
        return Shape(number, name, points, (x, y) if float(np.ptp(at_42, axis=0).max()) < _SMALL else None)


def _clusters(scenes: Sequence[Footprint], frame: _Frame) -> list[list[Footprint]]:
    """Scenes that lie together, the largest clusters first."""
    size = max(frame.width, frame.height) / _CELLS
    cells: dict[tuple[int, int], list[Footprint]] = {}
    for scene in scenes:
        lon, lat = scene.corners_42.mean(axis=0)
        cells.setdefault((int((lon - frame.west) // size), int((lat - frame.south) // size)), []).append(scene)
    clusters = []
    while cells:
        cluster, reached = [], [next(iter(cells))]
        while reached:
            x, y = reached.pop()
            cluster += cells.pop((x, y), [])
            reached += [(i, j) for i in (x - 1, x, x + 1) for j in (y - 1, y, y + 1) if (i, j) in cells]
        clusters.append(cluster)
    return sorted(clusters, key=len, reverse=True)


def _unwrapped(corners_42: Pixels) -> Pixels:
    """Corners on one side of the antimeridian, beyond 180 degrees if need be."""
    lons_4 = np.unwrap(corners_42[:, 0], period=360)
    return np.stack((lons_4, corners_42[:, 1]), axis=1)


def _squeeze(latitude: float) -> float:
    """Length of a degree of latitude over one of longitude, bounded near the poles."""
    return 1.0 / max(math.cos(math.radians(min(abs(latitude), 90.0))), 0.2)


def _degrees(value: float, sides: str) -> str:
    value = (value + 180.0) % 360.0 - 180.0 if sides == "EW" and abs(value) > 180.0 else value
    side = "" if value == 0 else f" {sides[0] if value > 0 else sides[1]}"
    return f"{plain(round(abs(value), 4))}°{side}"
