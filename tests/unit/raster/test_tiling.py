import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringmoe.errors import ConfigError
from ringmoe.raster.tiling import TileGrid, TilingConfig

sides = st.integers(1, 300)
grids = st.builds(TileGrid, sides, sides, st.integers(1, 80), st.integers(1, 100), st.floats(0.01, 0.99))


def test_paper_grid():
    grid = TilingConfig().grid(1000, 450)
    assert (grid.row_starts[0], grid.row_starts[-1], len(grid.row_starts)) == (0, 768, 13)
    assert list(grid.col_starts) == [0, 64, 128, 192, 256]
    assert grid.num_tiles == 65
    assert grid.num_uncovered == 1000 * 450 - 960 * 448


@given(grids)
def test_uncovered_pixels_are_those_in_no_window(grid: TileGrid):
    seen = np.zeros((grid.height, grid.width), dtype=bool)
    for row in grid.row_starts:
        for col in grid.col_starts:
            window = seen[row : row + grid.tile, col : col + grid.tile]
            assert window.shape == (grid.tile, grid.tile)
            window[...] = True
    if grid.num_tiles:
        assert grid.num_uncovered == np.count_nonzero(~seen)


@given(grids)
def test_hold_out_shares_no_pixel_with_training(grid: TileGrid):
    trained = {row + i for row in grid.row_starts if grid.split(row) == "train" for i in range(grid.tile)}
    held = {row + i for row in grid.row_starts if grid.split(row) == "val" for i in range(grid.tile)}
    assert not trained & held
    two_rows = len(grid.row_starts) > 0 and grid.row_starts[-1] >= grid.tile
    if two_rows:
        assert trained
        assert held
    else:
        assert not held
        assert all(grid.split(row) == "train" for row in grid.row_starts)


def test_share_of_rows_is_held_out():
    grid = TilingConfig(tile=192, stride=64, holdout=0.2).grid(4000, 400)
    assert grid.border == 3200
    assert [grid.split(row) for row in (3008, 3072, 3136, 3200, 3776)] == ["train", None, None, "val", "val"]


def test_without_hold_out_everything_trains():
    grid = TilingConfig().grid(4000, 400)
    assert {grid.split(row) for row in grid.row_starts} == {"train"}


@pytest.mark.parametrize("wrong", [{"tile": 0}, {"stride": 0}, {"holdout": 1.0}, {"holdout": -0.1}])
def test_wrong_settings(wrong: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TilingConfig(**wrong)
