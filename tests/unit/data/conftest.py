"""Small real scenes and the shards that are built of them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe import modality as registry
from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

SMALL = BuildConfig(tiling=TilingConfig(tile=16, stride=8, holdout=0.25), tiles_per_shard=40)


def write_scene(path: Path, key: str, *, seed: int = 0, height: int = 64, width: int = 72, **options: Any) -> Path:
    """A scene of random numbers, without black pixels; ``dtype``, ``units``, ``sensor`` and ``nodata`` are options."""
    spec = registry.get(key)
    generator = np.random.default_rng(seed)
    dtype = np.dtype(options.get("dtype", "complex64" if spec.is_complex else spec.dtypes[0]))
    shape = (len(spec.bands), height, width)
    if dtype.kind == "c":
        pixels = (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(dtype)
    else:
        pixels = generator.integers(1, 200, shape).astype(dtype)
    tags = {"RINGMOE_MODALITY": key, "RINGMOE_UNITS": options.get("units", spec.units[0])}
    write_geotiff(
        path,
        pixels,
        crs="EPSG:32631",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5700000.0),
        descriptions=spec.bands,
        tags=tags | {"SENSOR": options.get("sensor", f"sensor of {key}")},
        nodata=options.get("nodata"),
    )
    return path


def damage(path: Path) -> None:
    """Spoils the middle of a compressed file: its header is fine, and reading fails on the way."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of all four modalities, five files."""
    folder = tmp_path_factory.mktemp("archive")
    for number, key in enumerate(("opt", "opt", "ms", "sar_l1", "sar_l2")):
        write_scene(folder / key / f"scene.{number}.tif", key, seed=number)
    return folder


@pytest.fixture(scope="session")
def _shards(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build([archive], tmp_path_factory.mktemp("out") / "shards", SMALL).manifest.root


@pytest.fixture
def shards(_shards: Path) -> Manifest:
    """Shards of the archive; for looking only."""
    return Manifest.open(_shards)


@pytest.fixture
def own_shards(_shards: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies of the shards of the archive, to be damaged."""
    return lambda name="copy": Path(shutil.copytree(_shards, tmp_path / name))
