"""Windows as blocks of cells, so that pixels under overlapping windows are looked at once.

Tile and stride share a divisor g: a window is a block of g x g cells, and the 9 windows that overlap at a place
(192 / 64) share what is known of its cells.
"""

import math
from dataclasses import dataclass

import numpy as np

from ringmoe.raster.scene import Pixels

# H rows, W columns of a strip; Y rows, X columns of cells; R rows, N columns of windows

_SAMPLES = 24  # along one side of a window, where a sample of the pixels will do


@dataclass(frozen=True)
class Windows:
    """Windows of a strip that begins and ends with a window.

    Attributes:
        tile: Height and width of a window, pixels.
        stride: Distance of neighbouring windows, pixels.
    """

    tile: int
    stride: int

    @property
    def cell(self) -> int:
        """Height and width of a cell, pixels."""
        return math.gcd(self.tile, self.stride)

    @property
    def thinning(self) -> int:
        """Distance of the pixels of a sample: a divisor of the cell that leaves 24 or more along a window's side."""
        wanted = max(self.tile // _SAMPLES, 1)
        return next(step for step in range(wanted, 0, -1) if self.cell % step == 0)

    @property
    def size(self) -> int:
        """Cells along a window's side."""
        return self.tile // self.cell

    @property
    def step(self) -> int:
        """Cells between the beginnings of neighbouring windows."""
        return self.stride // self.cell

    def reduce(self, operation: np.ufunc, pixels_HW: Pixels, *, thinned: bool = False) -> Pixels:
        """Reduces each cell to one number, counts to int32.

        Args:
            operation: Minimum, maximum, or sum of booleans.
            pixels_HW: (H, W) whole cells.
            thinned: Whether ``pixels_HW`` is a sample, every ``thinning``-th pixel both ways.

        Returns:
            (Y, X).
        """
        cell = self.cell // (self.thinning if thinned else 1)
        height, width = pixels_HW.shape
        dtype = np.int32 if operation is np.add else None
        columns = operation.reduce(pixels_HW.reshape(height // cell, cell, width), axis=1, dtype=dtype)
        cells: Pixels = operation.reduce(columns.reshape(height // cell, width // cell, cell), axis=2, dtype=dtype)
        return cells

    def total(self, counts_YX: Pixels) -> Pixels:
        """Sum over each window, by an integral image: (Y, X) to (R, N)."""
        integral = np.pad(counts_YX, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        rows = integral[self.size :: self.step] - integral[: -self.size : self.step]
        totals: Pixels = rows[:, self.size :: self.step] - rows[:, : -self.size : self.step]
        return totals

    def extreme(self, extremum: np.ufunc, values_YX: Pixels) -> Pixels:
        """Minimum or maximum over each window, one side after the other: (Y, X) to (R, N)."""
        return self.along(extremum, self.along(extremum, values_YX, axis=0), axis=1)

    def along(self, operation: np.ufunc, values: Pixels, *, axis: int) -> Pixels:
        """Reduces along one axis of cells to one of windows; of the type of ``values``."""
        num = (values.shape[axis] - self.size) // self.step + 1
        ahead = (slice(None),) * axis
        parts = (
            values[(*ahead, slice(first, first + (num - 1) * self.step + 1, self.step))] for first in range(self.size)
        )
        reduced: Pixels = next(parts).copy(order="K")
        for part in parts:
            operation(reduced, part, out=reduced)
        return reduced

    def share(self, pixels_HW: Pixels, *, thinned: bool = False) -> Pixels:
        """Share of each window's pixels, or of its sample, that are true: (H, W) to (R, N)."""
        num = (self.tile // (self.thinning if thinned else 1)) ** 2
        shares: Pixels = self.total(self.reduce(np.add, pixels_HW, thinned=thinned)) / num
        return shares
