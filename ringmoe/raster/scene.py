"""A raw scene that is understood: which of its bands is which, what its numbers are, where and when it was taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.batch import Radiometry
from ringmoe.modality import Unit

Pixels = np.ndarray[Any, np.dtype[Any]]
Transform = tuple[float, float, float, float, float, float]

UNKNOWN_SENSOR = "unknown"


ControlPoint = tuple[float, float, float, float]
"""Row and column in pixels (0 is the outer edge of the first), longitude and latitude in degrees (WGS 84)."""


@dataclass(frozen=True, kw_only=True)
class BandSource:
    """Where one band of a scene lies, and what its numbers are multiplied with when they are read.

    Attributes:
        index: Raster band (from 1); the real part where ``imaginary`` is given.
        file: File relative to the scene's path; empty where the scene is one file.
        imaginary: Raster band of the imaginary part, where the two parts are bands of their own.
        gain: Factor of the calibration.
        table: Calibration annotation, relative to the scene's path, whose sigma-nought table the numbers are divided
            by; None for none.
        repeat: How often each of its pixels stands for one of the scene along each side: its file is so much coarser.
    """

    index: int
    file: str = ""
    imaginary: int | None = None
    gain: float = 1.0
    table: str | None = None
    repeat: int = 1

    @property
    def is_calibrated(self) -> bool:
        """Whether reading changes the numbers."""
        return self.gain != 1.0 or self.table is not None


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A quality mask that a product brings along.

    Attributes:
        kind: What its numbers mean: the name that its maker gives it ("SCL", "QA_PIXEL").
        file: File relative to the scene's path.
    """

    kind: str
    file: str


@dataclass(frozen=True, kw_only=True)
class ProductInfo:
    """What an agency's product says of a scene beside its pixels.

    Attributes:
        kind: Instrument and level in words ("Sentinel-2 L2A").
        identifier: The product's own name.
        level: Processing level in its maker's words.
        place: Tile, path and row, or swath in its maker's words; None where it has none.
        mask: Quality mask; None where the product has none.
        saturation: Mask of the saturated pixels; None where the product has none.
        saturated: Number of a saturated pixel; None where the product does not say it.
        unused: Rasters of the product that no scene takes anything from.
    """

    kind: str
    identifier: str
    level: str
    place: str | None = None
    mask: Mask | None = None
    saturation: Mask | None = None
    saturated: float | None = None
    unused: int = 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is needed to cut tiles from a file or a product of several, known before any pixel is read.

    Attributes:
        path: The file, or the folder of the product.
        name: Relative name that tiles carry as their source; unique in its catalogue.
        modality: Key of its ``ModalitySpec``.
        bands: Where each band of the modality lies, or None where it is declared absent. All lie on one grid.
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
        control: Ground control points, where the scene has these and no transform.
        radiometry: How the numbers become a physical quantity; None where nothing is known of it.
        product: What the product says beside; None for a file of its own.
        place: Declared name of the ground that it shares with other scenes; None where nothing is declared.
        member: Declared name within its place; None where nothing is declared.
    """

    path: Path
    name: str
    modality: str
    bands: tuple[BandSource | None, ...]
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
    control: tuple[ControlPoint, ...] = ()
    radiometry: Radiometry | None = None
    product: ProductInfo | None = None
    place: str | None = None
    member: str | None = None

    @property
    def band_indices(self) -> tuple[int | None, ...]:
        """For each band of the modality its raster band (from 1) in its file, or None where it is absent."""
        return tuple(None if band is None else band.index for band in self.bands)

    @property
    def absent(self) -> tuple[str, ...]:
        """Bands of the modality that it does not have."""
        names = registry.get(self.modality).bands
        return tuple(name for name, band in zip(names, self.bands, strict=True) if band is None)

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The masks that the product brings along."""
        if self.product is None:
            return ()
        return tuple(mask for mask in (self.product.mask, self.product.saturation) if mask is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that pixels are made from, each once: rasters in the order of the bands, then tables."""
        present = [band for band in self.bands if band is not None]
        names = [band.file for band in present] + [band.table for band in present if band.table is not None]
        return tuple(self.path / name for name in dict.fromkeys(names))


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
    "missing_part": "a product lacks a file, or its metadata an entry",
    "other_product": "a product of a kind or level that is not read",
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


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Puts the name of a file before what is wrong with it; no name changes nothing."""
    try:
        yield
    except UnusableError as unusable:
        raise UnusableError(unusable.code, f"{file}: {unusable.message}" if file else unusable.message) from unusable
