"""CEOS SAR image files with complex samples (PALSAR and PALSAR-2 Level 1.1): records of fixed length, one a line.

The first record says how long the others are and where in them the samples lie (CEOS SAR CCT, image options file
descriptor; JAXA, ALOS/PALSAR Level 1.1/1.5 product format description, NEB-070062, and its successor for PALSAR-2). A
line is a header, in which the places of its first, middle and last sample on the ground stand, and big-endian float32
pairs I, Q. GDAL's drivers for CEOS ask for the whole product or one of some makers, so the records are read here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.windows import Window

from ringmoe.raster.scene import Pixels, UnusableError

# C bands, H rows, W columns

_DESCRIPTOR_BYTES = 720
_SAMPLE_BYTES = 8
_FORMAT = "COMPLEX*8"
_PLACES = slice(192, 216)  # of a line's header: latitudes, then longitudes of three samples, int32 in 1e-6 degrees
_NUM_TIED_LINES = 11


class CeosImage:
    """An open image file, with as much of a rasterio dataset as reading a scene needs.

    Attributes:
        height: Lines.
        width: Samples of a line.
        gcps: Ground control points and their system, as rasterio has them; none where the lines do not say their place.
    """

    count = 1
    dtypes = ("complex64",)
    descriptions = (None,)
    colorinterp = (ColorInterp.undefined,)
    nodatavals = (None,)
    subdatasets: tuple[str, ...] = ()
    crs = None
    rpcs = None
    transform = Affine.identity()

    def __init__(self, path: Path) -> None:
        """Reads the first record and finds the others.

        Raises:
            UnusableError: The file holds no complex samples, or is damaged or cut off.
        """
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                descriptor = file.read(_DESCRIPTOR_BYTES)
        except OSError as error:
            raise UnusableError("unreadable", f"it cannot be read ({error.strerror or error})") from error
        lines, record, width, prefix, data = (
            _number(descriptor, *place) for place in ((237, 8), (187, 6), (249, 8), (277, 4), (281, 8))
        )
        kind = descriptor[400:428].decode("ascii", "replace").strip()
        if kind != _FORMAT:
            raise UnusableError("wrong_dtype", f"its samples are {kind or 'of no type'!r}; read are {_FORMAT}")
        if min(lines, width) < 1 or data != width * _SAMPLE_BYTES or prefix + data > record:
            raise UnusableError(
                "unreadable",
                f"its first record promises {lines} lines of {record} bytes, {prefix} of them in front of {width} "
                f"samples that take {data}: the header is damaged. Copy it again from its source",
            )
        if size < (needed := _DESCRIPTOR_BYTES + lines * record):
            raise UnusableError(
                "unreadable",
                f"it has {size:,} bytes, but its first record promises {needed:,}: it was cut off. Copy it again from "
                "its source",
            )
        self.height, self.width = lines, width
        self.block_shapes = [(1, width)]
        rest = record - prefix - data
        self._layout = np.dtype([("header", f"V{prefix}"), ("samples", ">f4", (width, 2)), ("rest", f"V{rest}")])
        self._path = path
        self.gcps = self._tied(prefix)

    def tags(self) -> dict[str, str]:
        """It has none."""
        return {}

    def close(self) -> None:
        """No file is held open."""

    def read(self, indices: int | Sequence[int], window: Window, out: Pixels | None = None) -> Pixels:
        """Reads a window: (C, H, W) complex64 for a list of bands, (H, W) for one.

        Raises:
            UnusableError: The file was cut off since it was opened.
        """
        cols = slice(int(window.col_off), int(window.col_off + window.width))
        samples_HW2 = self._lines(int(window.row_off), int(window.height))["samples"][:, cols]
        pixels_HW = samples_HW2.astype("=f4").view("complex64")[..., 0]
        pixels: Pixels = pixels_HW if isinstance(indices, int) else np.stack([pixels_HW] * len(indices))
        if out is not None:
            out[...] = pixels
        return pixels

    def _lines(self, first: int, number: int) -> np.ndarray[Any, Any]:
        """Records of some lines; read and not mapped, for a map of a file that shrinks would end the process."""
        offset = _DESCRIPTOR_BYTES + first * self._layout.itemsize
        records = np.fromfile(self._path, self._layout, number, offset=offset)
        if len(records) < number:
            raise UnusableError("unreadable", f"line {first + len(records)} is not there any more: it was cut off")
        return records

    def _tied(self, prefix: int) -> tuple[list[GroundControlPoint], CRS | None]:
        """The places of the first, middle and last sample of some lines, where the lines say them."""
        if prefix < _PLACES.stop:
            return [], None
        lines = np.unique(np.linspace(0, self.height - 1, _NUM_TIED_LINES).astype(int)).tolist()
        headers = [self._lines(line, 1)["header"].tobytes() for line in lines]
        places = np.array([np.frombuffer(header[_PLACES], ">i4").reshape(2, 3) for header in headers]) * 1e-6
        if (np.abs(places) > np.array([[90], [180]])).any() or not places.any(axis=1).all():
            return [], None  # filled with blanks or zeros
        cols = (0.5, self.width / 2, self.width - 0.5)
        points = [
            GroundControlPoint(row=line + 0.5, col=col, x=place[1, k], y=place[0, k])
            for line, place in zip(lines, places, strict=True)
            for k, col in enumerate(cols)
        ]
        return points, CRS.from_epsg(4326)


def _number(record: bytes, first: int, length: int) -> int:
    """A number in the text of a record; ``first`` is its first byte, from 1 as in the format description.

    Raises:
        UnusableError: There is none.
    """
    text = record[first - 1 : first - 1 + length]
    try:
        return int(text)
    except ValueError as error:
        raise UnusableError(
            "unreadable", f"bytes {first} to {first + length - 1} of its first record are {text!r}; expected a number"
        ) from error
