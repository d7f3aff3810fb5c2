"""Sentinel-1 calibration tables: digital numbers to the amplitude whose square is sigma nought.

The annotation gives values A on a coarse grid of lines and pixels; sigma nought = |DN|^2 / A^2 with A interpolated
bilinearly (Radiometric Calibration of S-1 Level-1 Products, ESA-EOPG-CSCOP-TN-0002). So ``DN / A`` is a calibrated
amplitude, complex or real alike. Beyond the outermost entries the nearest one holds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ringmoe.raster.markup import Document
from ringmoe.raster.scene import Pixels, UnusableError

# V calibration vectors (lines of the table), H rows, W columns


@dataclass(frozen=True)
class CalibrationTable:
    """The table of one image.

    Attributes:
        lines_V: Line of each vector, ascending.
        amplitudes_VW: (V, W) float32, A in each column of the image.
    """

    lines_V: Pixels
    amplitudes_VW: Pixels

    @classmethod
    def load(cls, path: Path, width: int) -> "CalibrationTable":
        """Reads the ``sigmaNought`` values of a calibration annotation.

        Args:
            path: ``annotation/calibration/calibration-*.xml``.
            width: Columns of the image.

        Raises:
            UnusableError: The file is damaged, or a value is missing or not positive.
        """
        document = Document.load(path)
        columns = np.arange(width)
        rows: dict[float, Pixels] = {}
        for vector in document.all("calibrationVectorList/calibrationVector"):
            (line,), pixels, values = (document.numbers(name, vector) for name in ("line", "pixel", "sigmaNought"))
            if len(pixels) != len(values) or not pixels or min(values) <= 0 or np.any(np.diff(pixels) <= 0):
                raise UnusableError(
                    "missing_part",
                    f"{path.name}: the vector of line {line:g} has {len(pixels)} pixels and {len(values)} sigmaNought "
                    "values; expected as many of both, pixels ascending and values above zero. Fetch the file again",
                )
            rows[line] = np.interp(columns, pixels, values).astype(np.float32)
        lines = sorted(rows)
        return cls(np.array(lines), np.stack([rows[line] for line in lines]))

    def at(self, rows: range) -> Pixels:
        """A of every pixel of some rows: (H, W) float32."""
        lines_V, rows_H = self.lines_V, np.clip(np.asarray(rows), self.lines_V[0], self.lines_V[-1])
        below_H = np.clip(np.searchsorted(lines_V, rows_H, side="right") - 1, 0, max(len(lines_V) - 2, 0))
        above_H = np.minimum(below_H + 1, len(lines_V) - 1)
        gap_H = np.maximum(lines_V[above_H] - lines_V[below_H], 1e-9)  # a table of one line has no gap
        part_H1 = ((rows_H - lines_V[below_H]) / gap_H).astype(np.float32)[:, None]
        amplitudes_HW: Pixels = self.amplitudes_VW[below_H] * (1 - part_H1) + self.amplitudes_VW[above_H] * part_H1
        return amplitudes_HW
