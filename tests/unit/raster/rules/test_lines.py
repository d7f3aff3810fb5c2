"""Faulty lines are found wherever they lie, and what the ground, its resampling and its compression do is not."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import survey
from ringmoe.raster.rules.lines import striped
from ringmoe.raster.rules.windows import Windows
from ringmoe.raster.synth import SynthSettings, write_scenes
from ringmoe.raster.tiling import TilingConfig

SIDE = 384
WINDOWS = Windows(192, 64)


def ground(dtype: str = "uint16", *, noise: float = 20) -> np.ndarray:
    """(2, H, W) smooth waves and noise of the sensor."""
    generator = np.random.default_rng(0)
    rows, cols = np.mgrid[:SIDE, :SIDE]
    waves = 100 + 50 * np.sin(rows / 17 + cols / 31) * np.cos(cols / 13)
    return np.clip(waves + generator.normal(0, noise / 4, (2, SIDE, SIDE)), 1, 255).astype(dtype)


def dead(lines_HW: np.ndarray, at: int) -> None:
    lines_HW[at] = 0


def hot(lines_HW: np.ndarray, at: int) -> None:
    lines_HW[at] = lines_HW[at] + 60


def scrambled(lines_HW: np.ndarray, at: int) -> None:
    lines_HW[at] = np.random.default_rng(1).integers(0, 256, lines_HW.shape[1])


def filled(lines_HW: np.ndarray, at: int) -> None:
    lines_HW[at] = lines_HW[at - 1]


def dropout(lines_HW: np.ndarray, at: int) -> None:
    lines_HW[at : at + 9] = 3


FAULTS = (dead, hot, scrambled, filled, dropout)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_line_drops_the_windows_that_it_crosses(
    fault: Callable[[np.ndarray, int], None], columns: bool, dtype: str
):
    pixels_CHW = ground(dtype)
    assert not striped(pixels_CHW, WINDOWS).any()
    channel_HW = pixels_CHW[1].T if columns else pixels_CHW[1]
    fault(channel_HW, 100)
    found_RN = striped(pixels_CHW, WINDOWS)
    expected_RN = np.zeros((4, 4), dtype=bool)
    expected_RN[:2] = True  # of windows that begin at 0, 64, 128 and 192, line 100 is in the first two
    np.testing.assert_array_equal(found_RN.T if columns else found_RN, expected_RN)


def test_a_fault_of_part_of_a_line_drops_the_windows_that_it_crosses_whole():
    pixels_CHW = ground()
    pixels_CHW[0, 100, 60:320] = 0
    np.testing.assert_array_equal(striped(pixels_CHW, WINDOWS), [[False, True, True, False]] * 2 + [[False] * 4] * 2)


@pytest.mark.parametrize("row", [0, 63, 191, 383])
def test_lines_without_two_neighbours_in_the_window_do_not_count(row: int):
    pixels_CHW = ground()
    pixels_CHW[:, row] = 0
    found_RN = striped(pixels_CHW, WINDOWS)
    for number, start in enumerate(range(0, 193, 64)):
        assert found_RN[number].all() == (start < row < start + 191)


def test_a_verdict_is_the_windows_own():
    """The same from a strip as from the window alone, with faults of all kinds."""
    pixels_CHW = ground()
    for number, fault in enumerate(FAULTS):
        fault(pixels_CHW[number % 2], 40 + 61 * number)
    found_RN = striped(pixels_CHW, WINDOWS)
    for r, row in enumerate(range(0, 193, 64)):
        for n, col in enumerate(range(0, 193, 64)):
            alone_CHW = pixels_CHW[:, row : row + 192, col : col + 192]
            assert found_RN[r, n] == striped(alone_CHW, WINDOWS)[0, 0]


def _jpeg(pixels_HW: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW).save(buffer, "JPEG", quality=10)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.repeat(2, axis=1).repeat(2, axis=2)[:, :SIDE, :SIDE],  # nearest-neighbour resampling
        lambda x: x[:, np.arange(SIDE) * 9 // 10][:, :, np.arange(SIDE) * 9 // 10],
        lambda x: np.stack([_jpeg(channel) for channel in x]),
        lambda x: np.where(np.arange(SIDE)[:, None] > 150, x, 0).astype("uint8"),  # the edge of the scene
        lambda x: np.where(np.add.outer(np.arange(SIDE), np.arange(SIDE)) > 300, x, 0).astype("uint8"),
        lambda x: np.full_like(x, 7),
        lambda x: np.where(x > 100, 12, 11).astype("uint8"),  # water
        lambda x: x + 90 * ((np.arange(SIDE) % 97 < 3) | (np.arange(SIDE)[:, None] % 83 < 2)),  # straight roads
    ],
)
def test_the_ground_and_its_processing_are_no_fault(change: Callable[[np.ndarray], np.ndarray]):
    assert not striped(change(ground("uint8")).astype("uint8"), WINDOWS).any()


def test_speckle_is_no_fault():
    generator = np.random.default_rng(3)
    power = generator.exponential(1000, (4, 960, 960)).astype("float32")
    assert not striped(power, WINDOWS).any()
    parts = generator.normal(0, 300, (8, 960, 960)).astype("int16")
    assert not striped(parts, WINDOWS).any()


def test_real_scenes_have_no_faulty_lines(real_data: Path):
    folders = ("optical", "change_detection", "segmentation", "detection_optical", "sar_l2", "multispectral")
    scenes = [scene for folder in folders for scene in survey([real_data / folder]).scenes]
    tiling = TilingConfig(tile=192, stride=64)
    found = Counter(candidate.reason for scene in scenes for candidate in iter_tiles(scene, tiling, QualityConfig()))
    assert found["striped"] == 0
    assert found[None] > 3000


def test_synthetic_scenes_have_no_faulty_lines(tmp_path: Path):
    list(write_scenes(tmp_path, SynthSettings(seed=5, scenes=1, size=256)))
    found = Counter(
        candidate.reason
        for scene in survey([tmp_path], tile=96).scenes
        for candidate in iter_tiles(scene, TilingConfig(tile=96, stride=32), QualityConfig())
    )
    assert found["striped"] == 0
    assert found[None] > 100


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_dead_line_in_speckle_is_found(dtype: str):
    power = np.random.default_rng(3).exponential(30, (1, 192, 192)).clip(1, 255).astype(dtype)
    power[0, :, 77] = 0
    assert striped(power, WINDOWS).all()
