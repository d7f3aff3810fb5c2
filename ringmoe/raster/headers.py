"""What a file says about itself before GDAL is let near it: its format, and whether its header can be true.

The format is known by the first bytes, never by the name, and names the one GDAL driver that may open the file. Formats
that can point to other files or hosts (VRT and its kin) are not among them.
"""

import struct
from pathlib import Path
from typing import BinaryIO

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
_STRIP_OFFSETS, _ROWS_PER_STRIP = 273, 278
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_SEPARATE_PLANES = 2


def driver_of(path: Path) -> str | None:
    """The GDAL driver for a file, or None for a file that is no raster (a sidecar: text, JSON, XML, ...).

    Raises:
        UnusableError: It is or calls itself a raster, but cannot be read as one.
    """
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            raise OSError("it is not a regular file")
        with path.open("rb") as file:
            start = file.read(max(map(len, DRIVERS)))
    except OSError as error:
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


def _check_png(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL, 0))
    if _PNG_END not in file.read():
        raise UnusableError("unreadable", "it has no end, so it was cut off. Copy it again from its source")


def _check_tiff(file: BinaryIO) -> None:
    """Compares the number of blocks that the first directory lists with what its dimensions need."""
    try:
        tags = _first_directory(file)
        height, width = tags[_HEIGHT][1], tags[_WIDTH][1]
        if _TILE_WIDTH in tags:
            down, across = _blocks(height, tags[_TILE_HEIGHT][1]), _blocks(width, tags[_TILE_WIDTH][1])
        else:
            down, across = _blocks(height, tags.get(_ROWS_PER_STRIP, (1, height))[1]), 1
    except (struct.error, KeyError, ZeroDivisionError) as error:
        raise UnusableError(
            "unreadable", "its TIFF header is damaged or cut off. Copy it again from its source"
        ) from error
    planes = tags.get(_SAMPLES, (1, 1))[1] if tags.get(_PLANAR, (1, 1))[1] == _SEPARATE_PLANES else 1
    listed = tags.get(_TILE_OFFSETS, tags.get(_STRIP_OFFSETS, (0, 0)))[0]
    if listed < down * across * planes:
        raise UnusableError(
            "unreadable",
            f"its header promises {height} x {width} pixels in {down * across * planes} blocks but lists {listed}: "
            "the header is damaged or no data was ever written. Copy or export it again",
        )


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


def _first_directory(file: BinaryIO) -> dict[int, tuple[int, int]]:
    """Number of values and first value of each integer tag; the value is an offset where it does not fit in place."""
    order = "<" if file.read(2) == b"II" else ">"

    def read(code: str) -> tuple[int, ...]:
        return struct.unpack(order + code, file.read(struct.calcsize(order + code)))

    big = read("H") == (43,)
    if big:
        read("HH")
    file.seek(read("Q" if big else "I")[0])
    tags = {}
    for _ in range(read("Q" if big else "H")[0]):
        tag, kind, count = read("HHQ" if big else "HHI")
        value = file.read(8 if big else 4)
        if kind in _TIFF_INTEGERS:
            tags[tag] = count, struct.unpack_from(order + _TIFF_INTEGERS[kind], value)[0]
    return tags
