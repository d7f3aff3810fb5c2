"""GeoTIFFs that are either whole or not there."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from ringmoe.errors import SceneError

# C bands, H rows, W columns

_FLOAT_PREDICTOR = 3
_INTEGER_PREDICTOR = 2
_NO_PREDICTOR = 1  # no TIFF predictor is defined for complex samples
_PREDICTORS = {"f": _FLOAT_PREDICTOR, "i": _INTEGER_PREDICTOR, "u": _INTEGER_PREDICTOR, "c": _NO_PREDICTOR}


def write_geotiff(
    path: Path,
    pixels_CHW: np.ndarray[Any, np.dtype[Any]],
    *,
    crs: str | None,
    transform: Sequence[float] | None,
    descriptions: Sequence[str],
    tags: Mapping[str, str],
    nodata: float | None = None,
    compress: str = "deflate",
) -> None:
    """Writes a GeoTIFF under its final name in one step: whoever looks sees the whole file or none.

    Args:
        path: Target; folders are made, an existing file is replaced.
        pixels_CHW: (C, H, W) of any real or complex type that TIFF knows.
        crs: Coordinate reference system as WKT or an authority code ("EPSG:32631"); None for none.
        transform: Affine transform, six numbers (a, b, c, d, e, f) in rasterio's order; None for none.
        descriptions: Name of each band.
        tags: File-level metadata.
        nodata: Value of pixels without data; None for none.
        compress: A compression GDAL knows for TIFF, or "none".

    Raises:
        SceneError: The file cannot be written (no space, no permission).
    """
    num_bands, height, width = pixels_CHW.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": pixels_CHW.dtype.name,
        "count": num_bands,
        "height": height,
        "width": width,
        "crs": crs,
        "transform": rasterio.Affine(*transform) if transform is not None else None,
        "nodata": nodata,
        "compress": compress,
        "tiled": height >= 256 and width >= 256,
    }
    if compress != "none":
        profile["predictor"] = _PREDICTORS[pixels_CHW.dtype.kind]
    # GDAL notices a full disk only while it closes a file, and then may only print; so it encodes into memory
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(**profile) as dataset:
            dataset.write(pixels_CHW)
            dataset.descriptions = tuple(descriptions)
            dataset.update_tags(**tags)
        write_whole(path, memory.getbuffer())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes ``content`` beside ``path``, makes it durable and renames it; removes it again when that fails.

    Raises:
        SceneError: The file cannot be written (no space, no permission).
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise SceneError(
            f"{path} cannot be written: {error.strerror}. Nothing was left behind; free space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
