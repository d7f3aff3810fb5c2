"""Where scenes lie on the globe: the longitude and latitude of their outer corners."""

import math
from functools import lru_cache

import numpy as np
import rasterio
from rasterio.warp import transform as reproject

from ringmoe.batch import Corner
from ringmoe.raster.grid import ControlGrid
from ringmoe.raster.scene import Scene, Transform
from ringmoe.raster.source import ERRORS

Footprint = tuple[Corner, Corner, Corner, Corner]

_DIGITS = 5  # of degrees: about a metre


def footprint(scene: Scene) -> Footprint | None:
    """The four corners, clockwise from the first row and column.

    Control points are interpolated where they form a grid; else each corner is the control point nearest to it.

    Returns:
        Longitudes and latitudes in degrees (WGS 84); None where nothing ties the scene to the globe.
    """
    rows, cols = (0, 0, scene.height, scene.height), (0, scene.width, scene.width, 0)
    if scene.crs is not None and scene.transform is not None:
        corners = _projected(scene.crs, scene.transform, rows, cols)
    elif scene.control:
        corners = ControlGrid(scene.control).outline(0, 0, scene.height, scene.width)
        corners = corners or _nearest(scene, rows, cols)
    else:
        return None
    if corners is None or not all(math.isfinite(value) for corner in corners for value in corner):
        return None
    first, second, third, fourth = ((round(lon, _DIGITS), round(lat, _DIGITS)) for lon, lat in corners)
    return first, second, third, fourth


def _projected(crs: str, transform: Transform, rows: tuple[int, ...], cols: tuple[int, ...]) -> Footprint | None:
    """Through the scene's transform and reference system; None for a system that is tied to no place on the globe."""
    a, b, c, d, e, f = transform
    xs = [a * col + b * row + c for row, col in zip(rows, cols, strict=True)]
    ys = [d * col + e * row + f for row, col in zip(rows, cols, strict=True)]
    try:
        with rasterio.Env():
            lons, lats = reproject(_system(crs), _system("EPSG:4326"), xs, ys)[:2]
    except ERRORS:
        return None
    first, second, third, fourth = zip(lons, lats, strict=True)
    return first, second, third, fourth


@lru_cache(maxsize=256)
def _system(name: str) -> rasterio.CRS:
    """A reference system; archives have many scenes in few of them."""
    return rasterio.CRS.from_string(name)


def _nearest(scene: Scene, rows: tuple[int, ...], cols: tuple[int, ...]) -> Footprint:
    points = np.array(scene.control)
    found = [
        int(np.argmin(np.hypot(points[:, 0] - row, points[:, 1] - col))) for row, col in zip(rows, cols, strict=True)
    ]
    first, second, third, fourth = ((float(points[i, 2]), float(points[i, 3])) for i in found)
    return first, second, third, fourth
