"""Small real rasters in every layout, written by the tests."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from ringmoe.raster.recognise import recognise
from ringmoe.raster.scene import Scene

WriteRaster = Callable[..., Path]


@pytest.fixture
def write_raster(tmp_path: Path) -> WriteRaster:
    """Writes ``pixels_CHW`` below the test's folder; ``names`` become descriptions, the rest goes to GDAL."""

    def write(
        name: str,
        pixels_CHW: np.ndarray,
        *,
        names: tuple[str | None, ...] = (),
        tags: dict[str, str] | None = None,
        gcps: list[Any] | None = None,
        **options: Any,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        num_bands, height, width = pixels_CHW.shape
        profile = {"driver": "GTiff", "dtype": pixels_CHW.dtype.name, "count": num_bands, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, "w", height=height, width=width, **profile) as dataset:
                for band, description in enumerate(names, start=1):
                    dataset.set_band_description(band, description or "")
                dataset.update_tags(**(tags or {}))
                if gcps is not None:
                    dataset.gcps = gcps, rasterio.CRS.from_epsg(4326)
                dataset.write(pixels_CHW)  # last, so that the header stays in front of the pixels
        return path

    return write


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Pixels without zeros: (C, H, W) of any type, the same in every run."""

    def draw(dtype: str, num_bands: int, height: int, width: int) -> np.ndarray:
        generator = np.random.default_rng(7)
        if np.dtype(dtype).kind == "c":
            parts = generator.integers(1, 30000, (2, num_bands, height, width))
            return (parts[0] - 1j * parts[1]).astype(dtype)
        return generator.integers(1, 120, (num_bands, height, width)).astype(dtype)

    return draw


@pytest.fixture
def scene_of() -> Callable[..., Scene]:
    """The one scene of a file."""

    def recognised(path: Path, **options: Any) -> Scene:
        (scene,) = recognise([path], **{"tile": 16, **options}).scenes
        return scene

    return recognised
