import resource
from pathlib import Path

import numpy as np
import pytest
import rasterio

from ringmoe.errors import SceneError
from ringmoe.raster.write import write_geotiff

ABOUT = {"crs": "EPSG:32631", "transform": (10, 0, 5e5, 0, -10, 5e6), "descriptions": ("a", "b"), "tags": {"ROLE": "x"}}


@pytest.mark.parametrize("compress", ["deflate", "none"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "complex64"])
@pytest.mark.parametrize("side", [40, 300])
def test_reads_back(dtype: str, compress: str, side: int, tmp_path: Path):
    pixels_CHW = np.random.default_rng(0).integers(0, 100, (2, side, side)).astype(dtype)
    if dtype == "complex64":
        pixels_CHW = pixels_CHW * (1 + 2j)
    path = tmp_path / "new" / "folder" / "s.tif"
    write_geotiff(path, pixels_CHW.astype(dtype), **ABOUT, nodata=3, compress=compress)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), pixels_CHW)
        assert (dataset.crs.to_epsg(), dataset.nodata, dataset.descriptions) == (32631, 3, ("a", "b"))
        assert (tuple(dataset.transform)[:6], dataset.tags()["ROLE"]) == (ABOUT["transform"], "x")
    assert [file.name for file in path.parent.iterdir()] == ["s.tif"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "s.tif"
    write_geotiff(path, np.zeros((2, 8, 8), np.uint8), **ABOUT)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # what a full disk is to a file
        with pytest.raises(SceneError, match=r"s\.tif cannot be written: File too large\. Nothing was left behind"):
            write_geotiff(path, np.random.default_rng(0).integers(0, 255, (2, 99, 99), np.uint8), **ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["s.tif"]
    assert path.read_bytes() == before


def test_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(SceneError, match="cannot be written"):
        write_geotiff(tmp_path / "out" / "s.tif", np.zeros((2, 8, 8), np.uint8), **ABOUT)
