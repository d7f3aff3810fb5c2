"""The one place where files are opened: one driver for each file, no side effects, bounded caches."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio lets pass here and there
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError, TransformError
from rasterio.transform import RPCTransformer, from_gcps
from rasterio.warp import transform as reproject
from rasterio.windows import Window

from ringmoe.raster import headers
from ringmoe.raster.ceos import CeosImage
from ringmoe.raster.scene import ControlPoint, Pixels, Transform, UnusableError

# C bands, H rows, W columns

ERRORS = (RasterioError, CRSError, CPLE_BaseError, UnicodeError)
"""All that reading a damaged or cut file may raise; texts in headers and names of files may be no UTF-8."""

_GDAL = {
    "GDAL_CACHEMAX": 64 << 20,  # bytes here; every block is read once, so a larger cache would only hold memory
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,  # a JPEG that is cut off would otherwise read as grey
    "GTIFF_IGNORE_READ_ERRORS": False,
}
_NUM_RATIONAL = 11  # points along each side
_EQUATOR_RADIUS, _FLATTENING = 6378137.0, 1 / 298.257223563  # WGS 84, metres


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """Opens a file with the one driver that its first bytes name; yields rasterio's dataset.

    Raises:
        UnusableError: The file is no raster, cannot be opened, or turns out to be damaged while it is used.
    """
    driver = headers.driver_of(path)
    if driver is None:
        raise UnusableError("format", "it is no raster that is read here (GeoTIFF, JPEG, PNG, JPEG 2000)")
    headers.check(path, driver)
    if driver == headers.CEOS:
        yield CeosImage(path)
        return
    # GDAL's settings belong to a thread's stack of environments: they must not stay open while a generator is suspended
    try:
        with rasterio.Env(**_GDAL), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # an absolute path: names that begin otherwise ("GTIFF_DIR:1:") may have a meaning of their own to GDAL
            dataset = rasterio.open(path.absolute(), driver=driver, sharing=False)
    except UnicodeEncodeError as error:
        raise UnusableError(
            "unreadable", "the bytes of its name are no UTF-8, which GDAL expects; rename it"
        ) from error
    except ERRORS as error:
        raise UnusableError(
            "unreadable", f"it cannot be opened: {reason(error, path)}. Copy or export it again from its source"
        ) from error
    try:
        yield dataset
    except ERRORS as error:
        raise UnusableError(
            "unreadable", f"it is damaged: {reason(error, path)}. Copy it again from its source"
        ) from error
    finally:
        dataset.close()


def read_rows(dataset: Any, indices: Sequence[int], rows: range, out_CHW: Pixels | None = None) -> Pixels:
    """Reads whole rows of some bands.

    Args:
        dataset: An open raster.
        indices: Bands from 1, in the order wanted.
        rows: Rows to read.
        out_CHW: Where to put them; a new array if None.

    Returns:
        (C, H, W) in the type of the file.

    Raises:
        ERRORS: The data is damaged or cut off.
    """
    with rasterio.Env(**_GDAL):
        window = Window(0, rows.start, dataset.width, len(rows))
        pixels: Pixels = dataset.read(list(indices), window=window, out=out_CHW)
        return pixels


def read_repeated(dataset: Any, indices: Sequence[int], rows: range, repeat: int) -> Pixels:
    """Rows of a scene from a file whose pixels are coarser: each is repeated, never interpolated, so no number is new.

    Args:
        dataset: An open raster.
        indices: Bands from 1, in the order wanted.
        rows: Rows of the scene.
        repeat: How many times as coarse the file is.

    Returns:
        (C, H, W) in the type of the file.

    Raises:
        ERRORS: The data is damaged or cut off.
    """
    if repeat == 1:
        return read_rows(dataset, indices, rows)
    first = rows.start // repeat
    coarse_CHW = read_rows(dataset, indices, range(first, -(-rows.stop // repeat)))
    fine_CHW: Pixels = coarse_CHW.repeat(repeat, axis=1).repeat(repeat, axis=2)
    return fine_CHW[:, rows.start - first * repeat :][:, : len(rows)]


def sample(dataset: Any, index: int, size: int = 256) -> Pixels:
    """A window of at most ``size`` x ``size`` pixels from the middle of one band.

    Raises:
        ERRORS: The data is damaged or cut off.
    """
    height, width = min(size, dataset.height), min(size, dataset.width)
    window = Window((dataset.width - width) // 2, (dataset.height - height) // 2, width, height)
    with rasterio.Env(**_GDAL):
        pixels: Pixels = dataset.read(index, window=window)
        return pixels


def reason(error: Exception, path: Path) -> str:
    """What GDAL said of a file, without its folder: rasterio itself often only points there.

    Messages stand in manifests, and these do not depend on where the scenes lie.
    """
    return str(error.__cause__ or error).replace(f"{path.absolute().parent}/", "")


def is_synthetic(dataset: Any) -> bool:
    """Whether a file says of itself that nobody observed it."""
    return str(dataset.tags().get("RINGMOE_SYNTHETIC", "")).casefold() in {"1", "true", "yes"}


def geolocation(dataset: Any) -> tuple[str | None, Transform | None, float | None]:
    """Reference system, transform and ground sampling distance, each None where the file does not give it.

    A scene that is only tied down by ground control points has no affine transform: just the sampling distance is
    taken from them here; ``control_points`` gives the points themselves.

    Raises:
        UnusableError: The transform holds a NaN or an infinity.
    """
    crs = dataset.crs.to_string() if dataset.crs else None
    affine = None if dataset.transform.is_identity else dataset.transform
    transform: Transform | None = tuple(affine)[:6] if affine is not None else None
    if transform is not None and not all(map(math.isfinite, transform)):
        raise _nowhere(f"its transform is {transform}")
    points, points_crs = dataset.gcps
    if affine is None and points and points_crs:
        return crs, transform, _sampling_distance(dataset, points_crs, from_gcps(points))
    if crs is None or affine is None:
        return crs, transform, None
    return crs, transform, _sampling_distance(dataset, dataset.crs, affine)


def control_points(dataset: Any) -> tuple[ControlPoint, ...]:
    """The ground control points of a raster in longitude and latitude; none where it has none, or of no known system.

    They are what places a raw image on the ground: it has no affine transform. Where there are rational polynomial
    coefficients instead, a grid of points follows from them, on ground of the height that they are centred on.

    Raises:
        UnusableError: A point holds a NaN or an infinity.
    """
    points, crs = dataset.gcps
    if not points:
        return _rational_points(dataset)
    if crs is None:
        return ()
    for point in points:
        if not all(map(math.isfinite, (point.row, point.col, point.x, point.y))):
            raise _nowhere(f"a control point is row {point.row}, column {point.col}, x {point.x}, y {point.y}")
    try:
        with rasterio.Env(**_GDAL):
            lons, lats = reproject(crs, "EPSG:4326", [point.x for point in points], [point.y for point in points])[:2]
    except ERRORS:
        return ()
    return tuple(
        (float(point.row), float(point.col), lon, lat) for point, lon, lat in zip(points, lons, lats, strict=True)
    )


def _rational_points(dataset: Any) -> tuple[ControlPoint, ...]:
    """A grid of points over a raster from its rational polynomial coefficients; none where these place it nowhere."""
    try:
        polynomials = dataset.rpcs
    except (KeyError, ValueError):  # rasterio's, of coefficients that are damaged
        polynomials = None
    if polynomials is None:
        return ()
    sides = (np.linspace(0, length, _NUM_RATIONAL) for length in (dataset.height, dataset.width))
    rows, cols = (side.ravel().tolist() for side in np.meshgrid(*sides, indexing="ij"))
    try:
        with rasterio.Env(**_GDAL), RPCTransformer(polynomials) as transformer:
            lons, lats = transformer.xy(rows, cols, zs=[polynomials.height_off] * len(rows), offset="ul")
    except (*ERRORS, TransformError, ValueError):
        return ()
    places = np.array([lons, lats])
    if not np.isfinite(places).all() or (np.abs(places[1]) > 90).any():
        return ()
    return tuple(zip(rows, cols, *places.tolist(), strict=True))


def _nowhere(what: str) -> UnusableError:
    return UnusableError("unreadable", f"{what}: the header is damaged. Copy or export it again from its source")


def _sampling_distance(dataset: Any, crs: Any, affine: Any) -> float | None:
    """Side of a square with the ground area of the middle pixel, metres, to three digits.

    Through longitude and latitude, so that degrees and Mercator's growing metres come out right; three digits hide the
    scale of a map projection (10.004 m is 10 m).
    """
    col, row = dataset.width / 2, dataset.height / 2
    a, b, c, d, e, f = affine[:6]
    corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in ((col, row), (col + 1, row), (col, row + 1))]
    try:
        with rasterio.Env(**_GDAL):
            lon_3, lat_3 = np.radians(reproject(crs, "EPSG:4326", *zip(*corners, strict=True))[:2])
    except ERRORS:  # a local system that is tied to no place on the globe
        return None
    eccentricity = _FLATTENING * (2 - _FLATTENING)
    curve = 1 - eccentricity * math.sin(lat_3[0]) ** 2
    north_3 = lat_3 * (_EQUATOR_RADIUS * (1 - eccentricity) / curve**1.5)
    east_3 = lon_3 * (_EQUATOR_RADIUS / math.sqrt(curve) * math.cos(lat_3[0]))
    area = (east_3[1] - east_3[0]) * (north_3[2] - north_3[0]) - (east_3[2] - east_3[0]) * (north_3[1] - north_3[0])
    distance = math.sqrt(abs(area))
    return float(f"{distance:.3g}") if math.isfinite(distance) and distance > 0 else None
