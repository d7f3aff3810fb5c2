"""Products on disk to scenes, and scenes to pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import Catalogue, survey
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.quality import KEEP_ALL

TILING = TilingConfig(tile=32, stride=32)


@pytest.fixture
def scenes_of() -> Callable[..., list[Scene]]:
    """The scenes of a folder; nothing in it may be refused."""

    def found(path: Path, **options: Any) -> list[Scene]:
        catalogue = survey([path], tile=32, **options)
        assert catalogue.refused == ()
        return list(catalogue.scenes)

    return found


@pytest.fixture
def refusal_of(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Code and message of the one refusal in the test's folder."""

    def refused(**options: Any) -> tuple[str, str]:
        (tmp_path / "beside.txt").touch()  # the folder is not the product, so nothing was named itself
        catalogue: Catalogue = survey([tmp_path], tile=32, **options)
        (refusal,) = catalogue.refused
        assert catalogue.scenes == ()
        return refusal.code, refusal.message

    return refused


@pytest.fixture
def mosaic() -> Callable[[Scene], np.ndarray]:
    """All pixels that tiles of 32 reach, put together again: (C, H, W)."""

    def read(scene: Scene) -> np.ndarray:
        rows, cols = scene.height // 32 * 32, scene.width // 32 * 32
        whole: np.ndarray | None = None
        for candidate in iter_tiles(scene, TILING, KEEP_ALL):
            assert candidate.tile is not None
            pixels_CHW = candidate.tile.pixels_CHW
            if whole is None:
                whole = np.zeros((len(pixels_CHW), rows, cols), pixels_CHW.dtype)
            whole[:, candidate.row : candidate.row + 32, candidate.col : candidate.col + 32] = pixels_CHW
        assert whole is not None
        return whole

    return read
