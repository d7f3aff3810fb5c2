"""Rotated boxes: where an object lies, which pixels it takes, and how it is written as GeoJSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rasterio.warp import transform as project

from ringmoe.raster.synth.fields import Array

# H rows, W columns of a window; coordinates are (x, y) in pixels, y down, and one pixel is one metre


class Window(NamedTuple):
    """The pixels round a box, in the box's own axes.

    Attributes:
        where: Rows and columns of the window in the raster.
        u_HW: Offset of each pixel centre from the box's centre along its length.
        v_HW: The same across its length.
    """

    where: tuple[slice, slice]
    u_HW: Array
    v_HW: Array


@dataclass(frozen=True)
class Box:
    """An object on the ground: a building, a ship or a vehicle.

    Attributes:
        kind: What it is.
        x: Column of its centre, pixels.
        y: Row of its centre, pixels.
        length: Longer side, pixels.
        width: Shorter side, pixels.
        angle: Direction of the length (of a ship or vehicle: where it points), radians from +x towards +y.
        height: Height above ground, metres; 0 where no height is modelled.
        style: Row of the table of roofs, hulls or paints.
        tone: Brightness against that spectrum.
        flat: A flat roof, not a gabled one (buildings).
        track: Number of the vehicle, 0 for what does not move.
    """

    kind: str
    x: float
    y: float
    length: float
    width: float
    angle: float
    height: float = 0.0
    style: int = 0
    tone: float = 1.0
    flat: bool = True
    track: int = 0

    @property
    def corners_42(self) -> Array:
        """(4, 2) corners as (x, y): front left, front right, back right, back left, seen along the length."""
        u, v = np.array([1, 1, -1, -1]) * self.length / 2, np.array([-1, 1, 1, -1]) * self.width / 2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack((self.x + u * cos - v * sin, self.y + u * sin + v * cos), axis=-1)

    @property
    def upright(self) -> tuple[float, float, float, float]:
        """The upright box round it: left, top, width, height."""
        low, high = self.corners_42.min(axis=0), self.corners_42.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])

    def inside(self, size: int, margin: float = 0.0) -> bool:
        """Whether the whole box, and ``margin`` round it, lies in a raster of this size."""
        left, top, width, height = self.upright
        return min(left, top) >= margin and max(left + width, top + height) <= size - margin

    def window(self, size: int, margin: float = 0.0) -> Window:
        """The pixels of its upright box and ``margin`` round it, as far as the raster goes."""
        left, top, width, height = self.upright
        rows = slice(max(0, int(top - margin)), min(size, int(np.ceil(top + height + margin))))
        cols = slice(max(0, int(left - margin)), min(size, int(np.ceil(left + width + margin))))
        x = np.arange(cols.start, cols.stop)[None, :] + 0.5 - self.x
        y = np.arange(rows.start, rows.stop)[:, None] + 0.5 - self.y
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return Window((rows, cols), x * cos + y * sin, y * cos - x * sin)

    def footprint(self, size: int, margin: float = 0.0) -> tuple[tuple[slice, slice], Array]:
        """Rows and columns of a window and the mask of the box, grown by ``margin``, in it."""
        window = self.window(size, margin)
        near = (np.abs(window.u_HW) <= self.length / 2 + margin) & (np.abs(window.v_HW) <= self.width / 2 + margin)
        return window.where, near


def place(candidates: Iterable[Box], taken_HW: Array, margin: float) -> tuple[Box, ...]:
    """Those candidates, in order, that lie inside and whose pixels, with a margin, none before them has taken.

    Args:
        candidates: Boxes to try.
        taken_HW: (H, W) bool, ground that is not free; the boxes placed are added to it.
        margin: Free ground round each box, pixels.
    """
    size = taken_HW.shape[0]
    placed = []
    for box in candidates:
        if not box.inside(size, 2.0) or taken_HW[int(box.y), int(box.x)]:
            continue
        where, near = box.footprint(size, margin)
        if not (taken_HW[where] & near).any():
            taken_HW[where] |= near
            placed.append(box)
    return tuple(placed)


def feature_collection(
    boxes: Sequence[Box], *, crs: str, transform: tuple[float, ...], scene: str, acquired: str
) -> dict[str, Any]:
    """The boxes as GeoJSON (RFC 7946: longitude and latitude on WGS 84, rings counter-clockwise).

    Args:
        boxes: Objects of one raster.
        crs: The raster's coordinate reference system.
        transform: Its affine transform (a, b, c, d, e, f).
        scene: Its name.
        acquired: Its time, ISO 8601.
    """
    rings = [_ring(box, crs, transform) for box in boxes]
    features = [
        {
            "type": "Feature",
            "id": number,
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": _properties(box),
        }
        for number, (box, ring) in enumerate(zip(boxes, rings, strict=True), start=1)
    ]
    return {
        "type": "FeatureCollection",
        "synthetic": True,
        "scene": scene,
        "acquired": acquired,
        "scene_crs": crs,
        "features": features,
    }


def _properties(box: Box) -> dict[str, Any]:
    """Class, boxes in pixels, direction and height of an object."""
    return {
        "class": box.kind,
        "upright_box_px": [round(value, 2) for value in box.upright],
        "rotated_box_px": [[round(float(x), 2), round(float(y), 2)] for x, y in box.corners_42],
        "heading_deg": round(float(np.rad2deg(box.angle)) % 360.0, 2),
        "height_m": round(box.height, 2),
    }


def _ring(box: Box, crs: str, transform: tuple[float, ...]) -> list[list[float]]:
    """The closed outline in longitude and latitude."""
    a, b, c, d, e, f = transform
    x, y = box.corners_42[::-1].T  # the corners run clockwise on the ground
    longitude, latitude = project(crs, "EPSG:4326", a * x + b * y + c, d * x + e * y + f)
    ring = [[round(lon, 8), round(lat, 8)] for lon, lat in zip(longitude, latitude, strict=True)]
    return [*ring, ring[0]]
