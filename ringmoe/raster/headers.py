"""What a file says about itself before GDAL is let near it: its format, and whether its header can be true.

The format is known by the first bytes, never by the name, and names the one GDAL driver that may open the file. Formats
that can point to other files or hosts (VRT and its kin) are not among them.
"""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ringmoe.raster.scene import UnusableError

CEOS = "CEOS"
CEOS_MAGIC = b"\0\0\0\x01\x32\xc0\x12\x12"  # record 1, an image options file descriptor

DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\0\0\0\x0cjP  \r\n": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    CEOS_MAGIC: CEOS,
}
"""First bytes of a file, and the GDAL driver that opens it; CEOS image files are read by ``ringmoe.raster.ceos``."""

_READ_SUFFIXES = frozenset({".tif", ".tiff", ".jpg", ".jpeg", ".png", ".jp2", ".j2k"})
_OTHER_SUFFIXES = frozenset({".vrt", ".img", ".hdf", ".h5", ".nc", ".ntf", ".nitf", ".ecw", ".sid", ".bil", ".grd"})

_PNG_END = b"IEND\xae\x42\x60\x82"
_TAIL = 4096  # bytes at the end of a PNG among which its last chunk must be: some writers append comments

_WIDTH, _HEIGHT, _SAMPLES, _PLANAR = 256, 257, 277, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_NODATA = 42113
_TIFF_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_SEPARATE_PLANES = 2


def driver_of(path: Path) -> str | None:
    """The GDAL driver for a file, or None for a file that is no raster (a sidecar: text, JSON, XML, ...).

    Raises:
        UnusableError: It is or calls itself a raster, but cannot be read as one; or a folder that cannot be listed.
    """
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            raise OSError("its link leads nowhere" if not path.exists() else "it is not a regular file")
        with path.open("rb") as file:
            start = file.read(max(map(len, DRIVERS)))
    except OSError as error:
        _check_listed(path)
        if suffix not in _READ_SUFFIXES:
            return None
        raise UnusableError("unreadable", f"it cannot be opened ({error.strerror or error}); check the file") from error
    for magic, driver in DRIVERS.items():
        if start.startswith(magic):
            return driver
    if suffix in _OTHER_SUFFIXES:
        raise UnusableError("format", f"{suffix} files are not read; convert it to GeoTIFF (gdal_translate)")
    if suffix in _READ_SUFFIXES:
        raise UnusableError(
            "unreadable", f"it is named {suffix} but does not begin like one: damaged, empty or misnamed"
        )
    return None


def check(path: Path, driver: str) -> None:
    """Looks for damage that the driver would pass over in silence: missing tiles and cut files read as zeros.

    Raises:
        UnusableError: The header does not fit the file.
    """
    try:
        with path.open("rb") as file:
            if driver == "GTiff":
                _check_tiff(file)
            elif driver == "PNG":
                _check_png(file)
    except OSError as error:
        raise UnusableError("unreadable", f"it cannot be read ({error.strerror or error})") from error


def _check_listed(path: Path) -> None:
    """A folder stands where files do only if it could not be listed: what it holds must not be lost in silence."""
    try:
        if path.is_dir():
            os.listdir(path)
    except OSError as error:
        raise UnusableError(
            "unreadable",
            f"this folder cannot be listed ({error.strerror}): nothing in it is used. Give access to it",
        ) from error


def _check_png(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL, 0))
    if _PNG_END not in file.read():
        raise UnusableError("unreadable", "it has no end, so it was cut off. Copy it again from its source")


def _check_tiff(file: BinaryIO) -> None:
    """Compares the blocks that the first directory lists with what its dimensions need."""
    try:
        tags = _Directory(file)
        height, width = tags.first(_HEIGHT), tags.first(_WIDTH)
        if tags.has(_TILE_WIDTH):
            down, across = _blocks(height, tags.first(_TILE_HEIGHT)), _blocks(width, tags.first(_TILE_WIDTH))
        else:
            down, across = _blocks(height, tags.first(_ROWS_PER_STRIP, height)), 1
        planes = tags.first(_SAMPLES, 1) if tags.first(_PLANAR, 1) == _SEPARATE_PLANES else 1
        needed, listed = down * across * planes, max(tags.count(_TILE_OFFSETS), tags.count(_STRIP_OFFSETS))
        sizes = tags.values(_TILE_BYTES if tags.has(_TILE_BYTES) else _STRIP_BYTES, needed)
        empty = 0 if tags.has(_NODATA) else np.count_nonzero(sizes == 0)
    except (struct.error, KeyError, ZeroDivisionError) as error:
        raise UnusableError(
            "unreadable", "its TIFF header is damaged or cut off. Copy it again from its source"
        ) from error
    if listed < needed:
        raise UnusableError(
            "unreadable",
            f"its header promises {height} x {width} pixels in {needed} blocks but lists {listed}: "
            "the header is damaged or no data was ever written. Copy or export it again",
        )
    if empty:
        raise UnusableError(
            "unreadable",
            f"{empty} of its {needed} blocks were never written, and no no-data value says what they stand for. Copy "
            "or export it again; if they are empty on purpose, set the file's no-data value (gdal_edit.py -a_nodata 0)",
        )


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


class _Directory:
    """The tags of a TIFF's first directory that hold whole numbers."""

    def __init__(self, file: BinaryIO) -> None:
        """Notes where the values of each tag lie.

        Raises:
            struct.error: It is cut off.
        """
        self._file, self._size = file, file.seek(0, 2)
        self._seek(0)
        self._order = "<" if file.read(2) == b"II" else ">"
        self._places: dict[int, tuple[str, int, int]] = {}
        self._others: set[int] = set()
        big = self._unpack("H") == (43,)
        if big:
            self._unpack("HH")
        entry, inline = ("HHQ", 8) if big else ("HHI", 4)
        self._seek(self._unpack("Q" if big else "I")[0])
        for _ in range(self._unpack("Q" if big else "H")[0]):
            tag, kind, count = self._unpack(entry)
            start, value = file.tell(), self._unpack("Q" if big else "I")[0]
            if kind in _TIFF_INTEGERS:
                code = self._order + _TIFF_INTEGERS[kind]
                self._places[tag] = code, count, start if np.dtype(code).itemsize * count <= inline else value
            else:
                self._others.add(tag)

    def has(self, tag: int) -> bool:
        """Whether the tag is there."""
        return tag in self._places or tag in self._others

    def count(self, tag: int) -> int:
        """How many values it has; 0 where it is missing."""
        return self._places[tag][1] if tag in self._places else 0

    def first(self, tag: int, default: int | None = None) -> int:
        """Its first value.

        Raises:
            KeyError: It is missing and has no default.
            struct.error: It is cut off.
        """
        if not self.count(tag):
            if default is None:
                raise KeyError(tag)
            return default
        return int(self.values(tag, 1)[0])

    def values(self, tag: int, num: int) -> np.ndarray[Any, np.dtype[Any]]:
        """Its first ``num`` values, or all if it has fewer; none where it is missing.

        Raises:
            struct.error: It is cut off.
        """
        code, count, start = self._places.get(tag, ("u1", 0, 0))
        num_bytes = min(num, count) * np.dtype(code).itemsize
        self._seek(start, num_bytes)
        return np.frombuffer(self._file.read(num_bytes), code)

    def _seek(self, start: int, num_bytes: int = 0) -> None:
        if start + num_bytes > self._size:
            raise struct.error("beyond the end of the file")
        self._file.seek(start)

    def _unpack(self, code: str) -> tuple[int, ...]:
        code = self._order + code
        return struct.unpack(code, self._file.read(struct.calcsize(code)))
