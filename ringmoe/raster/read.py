"""A scene's tiles, read in strips of whole rows: every block of each of its files is decoded once.

Windows of 192 at stride 64 overlap ninefold; read one by one they would decode a compressed file nine times. Here rows
are read in order, at block borders, into a strip; all windows that are complete in it are judged together and handed
out as views of it; only the rows that later windows need are carried over. Memory is that of one strip and of the rows
that are carried over, however high the scene, where nobody keeps tiles of the strip before.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.batch import Tile, TileRecord
from ringmoe.errors import SceneError
from ringmoe.raster.bandfiles import open_scene
from ringmoe.raster.grid import ControlGrid
from ringmoe.raster.kept import KeptRows, kept_rows
from ringmoe.raster.products.masks import open_masks
from ringmoe.raster.quality import Evidence, Marks, QualityConfig, judge
from ringmoe.raster.rules.clouds import cloud_test
from ringmoe.raster.scene import Mask, Pixels, Scene, Transform, UnusableError
from ringmoe.raster.tiling import Split, TilingConfig

# C channels, H rows, W columns of a strip

_STRIP_BYTES = 16 << 20  # of new rows, near what caches hold; more where one row of tiles or blocks needs it


@dataclass(frozen=True)
class Candidate:
    """One position of a scene's grid and what became of it.

    Attributes:
        tile: The tile; None where it is dropped. Its pixels are a view of the strip that was read, which stays in
            memory as long as the view: copy what is to be kept.
        row: First row of the window in the scene, pixels.
        col: First column of the window in the scene, pixels.
        reason: Why it is dropped, one of ``quality.REASONS``; None where it is kept.
        split: Side of the hold-out border; None on the border itself.
        pixels_CHW: Pixels of the window, dropped or not: a view like those of the tile.
    """

    tile: Tile | None
    row: int
    col: int
    reason: str | None
    split: Split | None
    pixels_CHW: Pixels


def iter_tiles(
    scene: Scene, tiling: TilingConfig, quality: QualityConfig, *, rows: range | None = None
) -> Iterator[Candidate]:
    """Every position of the scene's grid once, row by row.

    Args:
        scene: A recognised scene.
        tiling: Tile size, stride and hold-out.
        quality: Which tiles are dropped.
        rows: Indices into the grid's rows of tiles, to share a scene among workers; None for all.

    Yields:
        Kept tiles and dropped positions alike, in row-major order.

    Raises:
        SceneError: The file is cut off, damaged, or not the one that was recognised.
    """
    grid = tiling.grid(scene.height, scene.width)
    wanted = range(len(grid.row_starts)) if rows is None else rows
    if wanted.step != 1 or (wanted and wanted[-1] >= len(grid.row_starts)):
        raise ValueError(f"rows {wanted} of a grid with {len(grid.row_starts)} rows of tiles")
    starts = grid.row_starts[wanted.start : wanted.stop]
    if not starts or not grid.col_starts:
        return
    first = _record(scene, tiling.tile)
    present = _channels(scene) if first.absent else slice(None)
    control = ControlGrid(scene.control)
    evidence = _evidence(scene, first, tiling.tile)
    masks = scene.masks if quality.reads_masks else ()
    for strip_starts, strip_CHW, marks in _strips(scene, masks, starts, tiling.tile, kept_rows()):
        known = replace(evidence, marks=marks)
        verdicts = judge(strip_CHW[present], tiling.tile, tiling.stride, scene.nodata, quality, known)
        for row, reasons_N, valid_N in zip(strip_starts, verdicts.reasons_RN, verdicts.valid_RN.tolist(), strict=True):
            split = grid.split(row)
            row_CHW = strip_CHW[:, row - strip_starts[0] :][:, : tiling.tile]
            for col, reason, valid in zip(grid.col_starts, reasons_N, valid_N, strict=True):
                pixels_CHW = row_CHW[:, :, col : col + tiling.tile]
                if split is None or reason is not None:
                    yield Candidate(None, row, col, "split_border" if split is None else reason, split, pixels_CHW)
                    continue
                place: dict[str, Any] = {
                    "row": row,
                    "col": col,
                    "transform": _moved(scene.transform, row, col),
                    "valid": valid,
                }
                if scene.control:
                    place["corners"] = control.corners(row, col, tiling.tile)
                record = TileRecord(**vars(first) | place)  # several times faster than dataclasses.replace
                yield Candidate(Tile(pixels_CHW, record), row, col, None, split, pixels_CHW)
        del strip_CHW, row_CHW, pixels_CHW, marks, known  # nobody needs them while the next strip is read


def _record(scene: Scene, tile: int) -> TileRecord:
    """The record of the scene's first window, from which the others differ in place only."""
    spec = registry.get(scene.modality)
    return TileRecord(
        modality=scene.modality,
        bands=spec.bands,
        absent=scene.absent,
        units=scene.units,
        dtype=scene.dtype,
        sensor=scene.sensor,
        source=scene.name,
        row=0,
        col=0,
        size=tile,
        crs=scene.crs,
        transform=scene.transform,
        gsd=scene.gsd,
        acquired=scene.acquired,
        nodata=scene.nodata,
        synthetic=scene.synthetic,
        radiometry=scene.radiometry,
    )


def _evidence(scene: Scene, record: TileRecord, tile: int) -> Evidence:
    """What is known of all strips of a scene, for the quality rules."""
    present = [band for band in record.bands if band not in record.absent]
    return Evidence(
        saturated=None if scene.product is None else scene.product.saturated,
        cloud_test=cloud_test(scene, present, tile),
    )


def _moved(transform: Transform | None, row: int, col: int) -> Transform | None:
    """The transform of a window from that of its scene."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    return a, b, c + a * col + b * row, d, e, f + d * col + e * row


def _channels(scene: Scene) -> list[int]:
    """The channels that the scene has: bands that are present, I and Q of each where they are complex."""
    each = 2 if registry.get(scene.modality).is_complex else 1
    return [place * each + part for place, band in enumerate(scene.bands) if band is not None for part in range(each)]


def _strips(
    scene: Scene, masks: tuple[Mask, ...], starts: range, tile: int, kept: KeptRows | None
) -> Iterator[tuple[range, Pixels, Marks]]:
    """Strips that each begin with a window's first row and end with one's last, or behind it.

    Yields:
        The windows' first rows, the pixels, and what the masks say of them.

    Raises:
        SceneError: The scene cannot be read; in the same words whatever was kept, for manifests quote them.
    """
    try:
        yield from _read_strips(scene, masks, starts, tile, kept)
    except UnusableError as unusable:
        if kept is not None:
            for _ in _strips(scene, masks, starts, tile, None):
                pass  # until it says what it would have said
        raise SceneError(f"scene {scene.name}: {unusable.message}") from unusable


def _read_strips(
    scene: Scene, masks: tuple[Mask, ...], starts: range, tile: int, kept: KeptRows | None
) -> Iterator[tuple[range, Pixels, Marks]]:
    """The strips, and rows kept for whoever comes next.

    Raises:
        UnusableError: A band or a mask cannot be read.
    """
    num_channels = registry.get(scene.modality).num_channels
    row_bytes = num_channels * scene.width * np.dtype(scene.dtype).itemsize
    last, following = starts[-1] + tile, starts[-1] + starts.step
    with open_scene(scene) as bands, open_masks(scene, masks) as marks:
        block = bands.block_rows
        carried_CHW = None if kept is None else kept.take(scene, starts[0])
        if carried_CHW is None:
            carried_CHW = np.empty((num_channels, 0, scene.width), dtype=scene.dtype)
        read_to = starts[0] + carried_CHW.shape[1]
        while starts:
            read_from = max(read_to, starts[0])  # a stride beyond the tile leaves rows that no window needs
            needed_to = read_to = read_from  # rows that were kept may do for some tiles: no blocks on top of them
            if read_from < starts[0] + tile:
                target = max(read_from + _STRIP_BYTES // row_bytes, starts[0] + tile)
                needed_to = read_to = min(_up(target, block), last)
                if kept is not None and needed_to == last and following + tile <= scene.height:
                    rest_to = min(_up(last, block), scene.height)  # of blocks that are decoded now anyway
                    read_to = rest_to if kept.has_room((rest_to - following) * row_bytes) else needed_to
            num_carried = carried_CHW.shape[1]
            strip_CHW = np.empty((num_channels, num_carried + read_to - read_from, scene.width), dtype=scene.dtype)
            strip_CHW[:, :num_carried] = carried_CHW
            del carried_CHW  # and with it the strip before, which otherwise stays while this one is filled
            try:
                if read_to > read_from:
                    bands.read(range(read_from, read_to), strip_CHW[:, num_carried:])
            except UnusableError:
                if read_to == needed_to:
                    raise
                kept, read_to = None, needed_to  # the damage may be in what others need
                strip_CHW = strip_CHW[:, : num_carried + read_to - read_from]
                bands.read(range(read_from, read_to), strip_CHW[:, num_carried:])
            num_ready = len(range(starts[0], read_to - tile + 1, starts.step))
            ready, starts = starts[:num_ready], starts[num_ready:]
            rows = range(ready[0], ready[-1] + tile)
            yield ready, strip_CHW[:, : len(rows)], marks.read(rows)
            if starts:
                carried_CHW = strip_CHW[:, starts[0] - ready[0] :]
            elif kept is not None and following < read_to and following + tile <= scene.height:
                kept.put(scene, following, strip_CHW[:, following - ready[0] :])


def _up(row: int, block: int) -> int:
    """The next border of blocks from a row on."""
    return -(-row // block) * block
