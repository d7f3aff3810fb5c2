"""Damaged products end in words, whatever is damaged: never in a crash."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ringmoe.errors import SceneError
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.products import alos, gaofen, gaofen3, landsat, planet, sentinel1, sentinel2
from tests.fixtures.quality import KEEP_ALL


def read_all(folder: Path) -> None:
    for scene in recognise([folder], tile=32).scenes:
        for _ in iter_tiles(scene, TilingConfig(tile=32, stride=32), KEEP_ALL):
            pass


def damage(path: Path, chance: random.Random) -> None:
    """Changes bytes near the beginning, or cuts the file off."""
    content = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    else:
        for _ in range(chance.choice([1, 8])):
            content[chance.randrange(min(len(content), 3000))] = chance.randrange(256)
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore")  # GDAL's messages
@pytest.mark.parametrize(
    "write",
    [
        sentinel2.write_l2a,
        landsat.write_product,
        sentinel1.write_grd,
        sentinel1.write_slc,
        gaofen3.write_l1a,
        gaofen.write_l1a,
        planet.write_scene,
        alos.write_level_1_1,
    ],
)
def test_damaged_bytes_never_crash(write, tmp_path: Path):
    root = write(tmp_path / "whole")[0]
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    chance = random.Random(9)
    outcomes: Counter[str] = Counter()
    for _ in range(40):
        path = chance.choice(files)
        shutil.copytree(root, tmp_path / "damaged" / root.name)
        damage(tmp_path / "damaged" / root.name / path.relative_to(root), chance)
        try:
            read_all(tmp_path / "damaged")
            outcomes["read"] += 1
        except SceneError:
            outcomes["error"] += 1
        shutil.rmtree(tmp_path / "damaged")
    assert outcomes.total() == 40
    assert outcomes["error"] > 3
