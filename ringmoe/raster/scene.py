"""A raw scene that is understood: which of its bands is which, what its numbers are, where and when it was taken."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe.modality import Unit

Pixels = np.ndarray[Any, np.dtype[Any]]
Transform = tuple[float, float, float, float, float, float]

UNKNOWN_SENSOR = "unknown"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is needed to cut tiles from a file, known before any pixel is read.

    Attributes:
        path: The file.
        name: Relative name that tiles carry as their source; unique in its catalogue.
        modality: Key of its ``ModalitySpec``.
        band_indices: For each band of the modality the raster's band (from 1), or None where it is declared absent.
        units: What the numbers are: one of the modality's units.
        dtype: Numpy name of the stored tile pixels; complex scenes are stored as I, Q pairs of float32 (complex64)
            or int16 (GDAL's CInt16).
        sensor: Instrument, or ``UNKNOWN_SENSOR``.
        height: Rows.
        width: Columns.
        crs: Coordinate reference system as an authority code or WKT; None where the file has none.
        transform: Affine transform (a, b, c, d, e, f); None where the file has none.
        gsd: Ground sampling distance in metres; None where it is neither declared nor computable.
        acquired: Acquisition time, ISO 8601; None where it is not known.
        nodata: Value that marks entries without data; None where there is none. May be NaN.
        synthetic: The pixels were drawn, not observed.
    """

    path: Path
    name: str
    modality: str
    band_indices: tuple[int | None, ...]
    units: Unit
    dtype: str
    sensor: str
    height: int
    width: int
    crs: str | None
    transform: Transform | None
    gsd: float | None
    acquired: str | None
    nodata: float | None
    synthetic: bool


@dataclass(frozen=True)
class Refusal:
    """A file that looks like a scene but is not used, and why.

    Attributes:
        path: The file.
        code: Short word for counting: one of ``REFUSALS``.
        message: For people, with what to do about it.
    """

    path: Path
    code: str
    message: str


REFUSALS = {
    "unreadable": "no regular, readable file, or its header is damaged",
    "format": "a raster of a format that is not read (a VRT, for one, only points to other files)",
    "label": "its tags say that it is no scene (a label, a height map)",
    "not_scattering": "a coherency or covariance matrix: multi-looked, its scattering matrix is lost",
    "ambiguous_bands": "which band is which is not known, or more than one reading is possible",
    "wrong_bands": "the bands are known, and they are not those of the modality",
    "wrong_dtype": "the modality does not hold numbers of this type",
    "unknown_units": "the bands are known, but not what their numbers are",
    "conflict": "two sources say different things about it",
    "too_small": "smaller than one tile",
    "too_large": "its header promises more than memory or the file can hold",
}
"""The codes of refusals, in words."""


class UnusableError(Exception):
    """Raised inside this room where a file turns out to be no usable scene; becomes a refusal or a SceneError."""

    def __init__(self, code: str, message: str) -> None:
        assert code in REFUSALS, code
        super().__init__(message)
        self.code = code
        self.message = message
