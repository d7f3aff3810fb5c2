"""Files that lie, are cut off, or cannot be read: an error in words, never a crash and never silent zeros."""

import os
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import rasterio

from ringmoe.errors import SceneError
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.tiling import TilingConfig


def read_all(path: Path) -> None:
    """Recognises a scene and cuts all of its tiles."""
    scene = recognise([path], tile=32).scenes[0]
    for _ in iter_tiles(scene, TilingConfig(tile=32, stride=32), QualityConfig()):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(write_raster: Any, noise: Any):
    path = write_raster("s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"))
    path.chmod(0)
    with pytest.raises(SceneError, match="Permission denied"):
        recognise([path], tile=32)


def overwrite_tag(path: Path, tag: int, value: int) -> Path:
    """Changes the first value of a tag in the first directory of a little-endian TIFF."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (num,) = struct.unpack_from("<H", content, start)
    (entry,) = (
        start + 2 + 12 * i for i in range(num) if struct.unpack_from("<H", content, start + 2 + 12 * i)[0] == tag
    )
    struct.pack_into("<HII", content, entry + 2, 4, 1, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("tag", [256, 257])
@pytest.mark.parametrize("value", [4000, 2_000_000_000])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}])
def test_header_that_lies(tag: int, value: int, layout: dict[str, Any], write_raster: Any, noise: Any):
    path = write_raster("s.tif", noise("uint8", 3, 128, 128), names=("R", "G", "B"), **layout)
    with pytest.raises(SceneError, match=r"s\.tif: .*(promises|takes|cannot be read)"):
        read_all(overwrite_tag(path, tag, value))


def test_png_that_was_cut_off(write_raster: Any, noise: Any):
    path = write_raster("s.png", noise("uint8", 3, 64, 64), driver="PNG")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SceneError, match="cut off"):
        recognise([path], tile=32)


def test_text_that_is_no_text(write_raster: Any, noise: Any):
    path = write_raster("s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "BLUISH"))
    path.write_bytes(path.read_bytes().replace(b"BLUISH", b"BLUI\xff\xfe"))
    with pytest.raises(SceneError, match=r"s\.tif: it is damaged: .*codec"):
        recognise([path], tile=32)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio decoding GDAL's messages
def test_damaged_bytes_never_crash(tmp_path: Path, write_raster: Any, noise: Any):
    sources = [
        write_raster(
            "a.tif",
            noise("uint16", 4, 96, 96),
            names=("B", "G", "R", "NIR"),
            compress="deflate",
            crs="EPSG:32631",
            transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        ),
        write_raster(
            "b.tif",
            noise("uint16", 4, 96, 96),
            names=("B", "G", "R", "NIR"),
            bigtiff="yes",
            tiled=True,
            crs="EPSG:32631",
            transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        ),
        write_raster("c.jpg", noise("uint8", 3, 96, 96), driver="JPEG"),
    ]
    chance = random.Random(5)
    outcomes: Counter[str] = Counter()
    for _ in range(150):
        source = chance.choice(sources)
        content = bytearray(source.read_bytes())
        for _ in range(chance.choice([1, 4])):
            content[chance.randrange(4, min(len(content), 900))] = chance.randrange(256)
        damaged = tmp_path / f"damaged{source.suffix}"
        damaged.write_bytes(content)
        try:
            read_all(damaged)
            outcomes["read"] += 1
        except SceneError:
            outcomes["error"] += 1
    assert min(outcomes["read"], outcomes["error"]) > 10
