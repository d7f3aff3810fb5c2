"""Where tiles lie in a scene, and which of them are held out: arithmetic only (App. B.1).

Windows stand at all multiples of the stride that leave the tile whole inside the scene, as in the paper; the right and
bottom rest that no window reaches is counted, not padded.

Hold-out: overlapping windows of one scene share pixels, so a random split would leak. The rows are cut instead by one
border b: tiles that end at or above it train, tiles that begin at or below it validate, those that straddle it are
neither. b is the row below which a share ``holdout`` of the rows lies, moved to where both sides keep at least one
row of tiles. A scene whose grid has no two rows of tiles without overlap is not split: all of it trains.
"""

from dataclasses import dataclass
from typing import Literal

from ringmoe.errors import ConfigError

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How scenes are cut.

    Attributes:
        tile: Height and width of a tile, pixels.
        stride: Distance of neighbouring windows, pixels.
        holdout: Share of each scene's rows that is kept for validation; 0 keeps none.
    """

    tile: int = 192
    stride: int = 64
    holdout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.tile < 1 or self.stride < 1:
            raise ConfigError(f"tile ({self.tile}) and stride ({self.stride}) must be at least 1 pixel")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout is a share of the rows, at least 0 and below 1; it is {self.holdout}")

    def grid(self, height: int, width: int) -> "TileGrid":
        """The grid of a scene of ``height`` rows and ``width`` columns."""
        return TileGrid(height, width, self.tile, self.stride, self.holdout)


@dataclass(frozen=True)
class TileGrid:
    """The windows of one scene.

    Attributes:
        height: Rows of the scene.
        width: Columns of the scene.
        tile: Height and width of a tile.
        stride: Distance of neighbouring windows.
        holdout: Share of the rows kept for validation.
    """

    height: int
    width: int
    tile: int
    stride: int
    holdout: float = 0.0

    @property
    def row_starts(self) -> range:
        """First row of each row of tiles; empty where the scene is lower than a tile."""
        return range(0, self.height - self.tile + 1, self.stride)

    @property
    def col_starts(self) -> range:
        """First column of each column of tiles; empty where the scene is narrower than a tile."""
        return range(0, self.width - self.tile + 1, self.stride)

    @property
    def num_tiles(self) -> int:
        """All windows, whatever becomes of them."""
        return len(self.row_starts) * len(self.col_starts)

    @property
    def num_uncovered(self) -> int:
        """Pixels of the scene that no window reaches."""
        rows, cols = (self._covered(starts) for starts in (self.row_starts, self.col_starts))
        return self.height * self.width - rows * cols

    @property
    def border(self) -> int | None:
        """Row that parts training from validation; None where the scene is not split."""
        if self.holdout == 0 or not self.row_starts or self.row_starts[-1] < self.tile:
            return None
        return min(max(round(self.height * (1 - self.holdout)), self.tile), self.row_starts[-1])

    def split(self, row: int) -> Split | None:
        """Which side the tiles with first row ``row`` are on; None for those that straddle the border."""
        border = self.border
        if border is None or row + self.tile <= border:
            return "train"
        return "val" if row >= border else None

    def _covered(self, starts: range) -> int:
        """Pixels along one side that windows at ``starts`` cover."""
        return (len(starts) - 1) * min(self.stride, self.tile) + self.tile if starts else 0
