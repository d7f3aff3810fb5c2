"""The grid that a raster's pixels lie on, its place on the ground, and whether reading it is affordable."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ringmoe.batch import Corner
from ringmoe.raster import source
from ringmoe.raster.scene import ControlPoint, Pixels, Transform, UnusableError

# R rows, N columns of control points; K corners

STORED = {"complex64": "float32", "complex_int16": "int16"}
"""Type of the I and Q channels of complex bands."""

_MOST_BYTES_AT_ONCE = 1 << 30  # of one row of tiles, with the blocks of the file that it needs
_MOST_EXPANSION = 10_000  # bytes of pixels for each byte of the file: no codec does better on real data


@dataclass(frozen=True)
class Grid:
    """Size and place of a raster, as its header gives them.

    Attributes:
        height: Rows.
        width: Columns.
        crs: Coordinate reference system; None where there is none.
        transform: Affine transform; None where there is none.
        gsd: Ground sampling distance, metres; None where it cannot be computed.
        control: Control points, where there are these and no transform.
    """

    height: int
    width: int
    crs: str | None
    transform: Transform | None
    gsd: float | None
    control: tuple[ControlPoint, ...] = ()

    @classmethod
    def of(cls, dataset: Any) -> "Grid":
        """The grid of an open raster."""
        crs, transform, gsd = source.geolocation(dataset)
        control = source.control_points(dataset) if transform is None else ()
        return cls(dataset.height, dataset.width, crs, transform, gsd, control)

    def finer(self, times: int) -> "Grid":
        """The grid of pixels that are so many times as fine; control points are left where they are."""
        if times == 1:
            return self
        transform = self.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (a / times, b / times, c, d / times, e / times, f)
        return replace(self, height=self.height * times, width=self.width * times, transform=transform, gsd=None)

    def __str__(self) -> str:
        return f"{self.height} x {self.width} pixels, {self.crs or 'no reference system'}, transform {self.transform}"


def check_size(dataset: Any, band_bytes: int, num_wanted: int, file_bytes: int, tile: int) -> None:
    """Refuses scenes that hold no tile, and headers whose promises would cost memory or time without end.

    Args:
        dataset: An open raster.
        band_bytes: Bytes of one pixel of one band.
        num_wanted: Bands of the scene.
        file_bytes: Size of the file.
        tile: Side of a tile, pixels.

    Raises:
        UnusableError: Too small, too large, or larger than the file can be.
    """
    height, width = dataset.height, dataset.width
    if min(height, width) < tile:
        raise UnusableError("too_small", f"it has {height} x {width} pixels, less than a tile of {tile} x {tile}")
    promised = height * width * dataset.count * band_bytes
    if promised > _MOST_EXPANSION * file_bytes:
        raise UnusableError(
            "too_large",
            f"its header promises {height} x {width} pixels ({promised:,} bytes), but the file has {file_bytes:,} "
            "bytes: the header is damaged, or almost all of the scene is empty. Crop it",
        )
    block_rows, block_cols = dataset.block_shapes[0]
    needed = width * (tile + block_rows) * num_wanted * band_bytes
    if needed > _MOST_BYTES_AT_ONCE:
        raise UnusableError(
            "too_large",
            f"one row of tiles of its {height} x {width} pixels (blocks of {block_rows} x {block_cols}) takes "
            f"{needed:,} bytes, and {_MOST_BYTES_AT_ONCE:,} are allowed. Write it in lower blocks, or cut it",
        )


class ControlGrid:
    """Places between control points that form a grid of rows and columns, by bilinear interpolation."""

    def __init__(self, points: Sequence[ControlPoint]) -> None:
        """Sorts the points into their grid."""
        values = {(row, col): (lon, lat) for row, col, lon, lat in points}
        self._rows_R = np.unique([row for row, _ in values])
        self._cols_N = np.unique([col for _, col in values])
        self._is_grid = min(len(self._rows_R), len(self._cols_N)) > 1 and len(values) == len(self._rows_R) * len(
            self._cols_N
        )
        if self._is_grid:
            places = np.array([values[row, col] for row in self._rows_R for col in self._cols_N])
            places[:, 0] = np.unwrap(places[:, 0], period=360)  # across the antimeridian
            self._places_RN2 = places.reshape(len(self._rows_R), len(self._cols_N), 2)

    def corners(self, row: int, col: int, size: int) -> tuple[Corner, Corner, Corner, Corner] | None:
        """Outer corners of a square of pixels, clockwise from (row, col); None where the points form no grid."""
        return self.outline(row, col, size, size)

    def outline(self, row: int, col: int, height: int, width: int) -> tuple[Corner, Corner, Corner, Corner] | None:
        """Outer corners of a rectangle of pixels, clockwise from (row, col); None where the points form no grid.

        Beyond the outermost points the outermost cells are continued.
        """
        if not self._is_grid:
            return None
        at = [(row, col), (row, col + width), (row + height, col + width), (row + height, col)]
        first, second, third, fourth = (self._at(*place) for place in at)
        return first, second, third, fourth

    def _at(self, row: float, col: float) -> Corner:
        i, v = _cell(self._rows_R, row)
        j, u = _cell(self._cols_N, col)
        upper, lower = ((1 - u) * self._places_RN2[k, j] + u * self._places_RN2[k, j + 1] for k in (i, i + 1))
        lon, lat = ((1 - v) * upper + v * lower).tolist()
        return (lon + 180) % 360 - 180, lat


def _cell(knots: Pixels, at: float) -> tuple[int, float]:
    """The interval of ``knots`` that ``at`` lies in or is next to, and how far into it (0 to 1 inside)."""
    index = int(np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2))
    return index, float((at - knots[index]) / (knots[index + 1] - knots[index]))
