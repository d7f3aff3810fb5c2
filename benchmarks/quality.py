"""Which tiles the quality rules drop: of real and synthetic scenes, and of the same with faults put in on purpose.

    python benchmarks/quality.py [DATA] [--picture docs/images/quality.png]

Counts, by rule, the 192 x 192 windows (stride 64) of all scenes below DATA (none if it is not named) and of synthetic
scenes. Then faulty lines are put into windows that the rules keep, one fault in each, and into every second of them in
columns instead of rows: how many are found is the other half of the evidence for ``striped``. The same windows are
processed anew, and their hashes compared with each other's, as ``near_duplicate`` does. The picture shows a window of a
drawn landscape, and what was made of it that each rule drops it.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib import pyplot
from rich.console import Console
from rich.progress import track

from ringmoe.batch import Tile
from ringmoe.data.duplicates import hash_of
from ringmoe.raster.quality import REASONS, Evidence, Marks, QualityConfig, is_nodata, judge
from ringmoe.raster.read import Candidate, iter_tiles
from ringmoe.raster.recognise import survey
from ringmoe.raster.rules.clouds import CloudTest
from ringmoe.raster.rules.hashes import NEAR
from ringmoe.raster.rules.lines import striped
from ringmoe.raster.rules.windows import Windows
from ringmoe.raster.scene import Pixels
from ringmoe.raster.synth import SynthSettings, write_scenes
from ringmoe.raster.tiling import TilingConfig

TILE = 192
CONSOLE = Console(width=120)
_MOST_FAULTY = 400  # windows of each kind of scene that faults are put into


@dataclass(frozen=True)
class Settings:
    """What is looked at.

    Attributes:
        data: Folder of scenes.
        picture: File of the picture; none is drawn unless it is named.
    """

    data: Annotated[Path | None, tyro.conf.Positional] = None
    picture: Path | None = None


def _dead(lines: Pixels, at: int) -> None:
    lines[at] = 0


def _offset(lines: Pixels, at: int) -> None:
    step = 10 * np.abs(np.diff(lines.astype(np.float64), axis=0)).mean()
    lines[at] = np.clip(lines[at] + step, *_range(lines)).astype(lines.dtype)


def _scrambled(lines: Pixels, at: int) -> None:
    lines[at] = np.random.default_rng(at).uniform(lines.min(), lines.max(), lines.shape[1]).astype(lines.dtype)


def _repeated(lines: Pixels, at: int) -> None:
    lines[at] = lines[at - 1]


def _dropout(lines: Pixels, at: int) -> None:
    lines[at : at + 8] = lines.max()


FAULTS: dict[str, Callable[[Pixels, int], None]] = {
    "one dead line": _dead,
    "one line 10 mean steps brighter": _offset,
    "one line of noise over the full range": _scrambled,
    "one line repeated": _repeated,
    "8 lines lost": _dropout,
}


def _range(lines: Pixels) -> tuple[float, float]:
    limits = np.finfo(lines.dtype) if lines.dtype.kind == "f" else np.iinfo(lines.dtype)
    return float(limits.min), float(limits.max)


REPROCESSED: dict[str, Callable[[Pixels], Pixels]] = {
    "gain and offset": lambda x: 1.1 * x + 7,
    "noise of 2 % of the mean": lambda x: x + np.random.default_rng(0).normal(0, 0.02 * np.abs(x).mean(), x.shape),
    "another stretch": lambda x: np.sign(x) * np.abs(x) ** 0.9,
}


def candidates(folder: Path) -> Iterator[tuple[str, Candidate]]:
    """Modality and verdict of every window of all scenes below a folder."""
    for scene in track(survey([folder]).scenes, folder.name, console=Console(file=sys.stderr), transient=True):
        for candidate in iter_tiles(scene, TilingConfig(), QualityConfig()):
            yield scene.modality, candidate


def count(name: str, folder: Path) -> None:
    """Prints the windows of a folder by rule, and the faults that are found."""
    dropped: dict[str, Counter[str]] = {}
    kept: list[Tile] = []
    for modality, candidate in candidates(folder):
        dropped.setdefault(modality, Counter())[candidate.reason or "kept"] += 1
        if candidate.tile is not None and dropped[modality]["kept"] % 5 == 1:
            kept.append(replace(candidate.tile, pixels_CHW=candidate.tile.pixels_CHW.copy()))
    for modality, counts in dropped.items():
        listed = ", ".join(f"{counts[key]:,} {key}" for key in ("kept", *REASONS) if counts[key])
        CONSOLE.print(f"{name}, {modality}: {counts.total():,} windows: {listed}", highlight=False)
    kept = kept[:: max(len(kept) // _MOST_FAULTY, 1)]
    for fault, spoil in FAULTS.items():
        found = sum(_finds(tile.pixels_CHW, spoil, number) for number, tile in enumerate(kept))
        CONSOLE.print(f"{name}, {fault}: {found} of {len(kept)} found ({found / len(kept):.1%})", highlight=False)
    compare(name, [tile for tile in kept if not tile.record.absent])


def compare(name: str, tiles: Sequence[Tile]) -> None:
    """Prints how near the hashes of tiles are to those of the same tiles processed anew, and of other scenes."""
    hashes = np.array([hash_of(tile) for tile in tiles], dtype=np.uint64)
    for change, process in REPROCESSED.items():
        again = [hash_of(_processed(tile, process)) for tile in tiles]
        near = np.bitwise_count(hashes ^ np.array(again, dtype=np.uint64)) <= NEAR
        CONSOLE.print(f"{name}, {change}: {near.sum()} of {len(near)} hashes are near", highlight=False)
    scenes = np.array([tile.record.source for tile in tiles])
    apart = np.bitwise_count(hashes[:, None] ^ hashes)[scenes[:, None] != scenes]
    CONSOLE.print(f"{name}, other scenes: {(apart <= NEAR).sum()} of {apart.size} hashes are near", highlight=False)


def _processed(tile: Tile, process: Callable[[Pixels], Pixels]) -> Tile:
    """A tile of the same pixels processed anew; those without data stay so."""
    pixels_CHW = process(tile.pixels_CHW.astype(np.float32))
    nodata = tile.record.nodata
    if nodata is not None:
        pixels_CHW[is_nodata(tile.pixels_CHW, nodata)] = nodata
    return replace(tile, pixels_CHW=pixels_CHW)


def _finds(pixels_CHW: Pixels, spoil: Callable[[Pixels, int], None], number: int) -> bool:
    """Whether a fault in one channel of a tile is found; of every second tile in a column."""
    spoilt_CHW = pixels_CHW.copy()
    present = [channel for channel in spoilt_CHW if channel.any()]
    channel_HW = present[number % len(present)]
    spoil(channel_HW.T if number % 2 else channel_HW, 20 + number % 150)
    return bool(striped(spoilt_CHW, Windows(TILE, TILE)).any())


def draw(path: Path, folder: Path) -> None:
    """Draws a tile, and what was made of it that each rule drops it."""
    scene = next(scene for scene in survey([folder]).scenes if scene.modality == "opt")
    tile_CHW = next(found.tile for found in iter_tiles(scene, TilingConfig(), QualityConfig()) if found.tile).pixels_CHW
    figure, axes = pyplot.subplots(2, 4, figsize=(9.6, 5.2), layout="constrained")
    for axis, (reason, pixels_CHW, nodata, evidence) in zip(axes.flat, _examples(tile_CHW), strict=True):
        ((verdict,),) = judge(pixels_CHW, TILE, TILE, nodata, QualityConfig(), evidence).reasons_RN
        assert verdict == reason, f"{verdict} for an example of {reason}"
        axis.imshow(np.moveaxis(pixels_CHW, 0, -1))
        axis.set_title(reason or "kept", fontsize=10)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)


def _examples(tile_CHW: Pixels) -> Iterator[tuple[str | None, Pixels, float | None, Evidence]]:
    """Reason, pixels, no-data value and evidence of tiles that are dropped."""
    rows, cols = np.mgrid[:TILE, :TILE]
    corner_HW = rows + cols < 160
    haze_HW = np.clip(1.6 - np.hypot(rows - 90, cols - 100) / 60, 0, 1)
    thin_CHW, thick_CHW = ((tile_CHW * (1 - s * haze_HW) + 235 * s * haze_HW).astype(np.uint8) for s in (0.6, 1.0))
    lines_CHW = tile_CHW.copy()
    lines_CHW[:, 60] = 0
    lines_CHW[1, :, 130] = 255
    lines_CHW[:, 100:106] = lines_CHW[:, 99:100]
    nothing = Evidence()
    yield None, tile_CHW, None, nothing
    yield "no_data", np.where(corner_HW, 128, tile_CHW).astype(np.uint8), 128.0, nothing
    yield "black_border", np.where(corner_HW, 0, tile_CHW).astype(np.uint8), None, nothing
    yield "constant", np.full_like(tile_CHW, 90), None, nothing
    yield "saturated", np.clip(tile_CHW * 2.4, 0, 255).astype(np.uint8), None, nothing
    yield "striped", lines_CHW, None, nothing
    yield "cloud_mask", thin_CHW, None, Evidence(marks=Marks(cloud_HW=haze_HW > 0.4))
    picture = CloudTest(visible=(2, 1, 0), infrared=None, scale=1 / 255, offset=0.0, bright=0.8)
    yield "cloud_spectral", thick_CHW, None, Evidence(cloud_test=picture)


def main(settings: Settings) -> None:
    """Counts, and draws the picture where one is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic = Path(folder, "synthetic")
        list(write_scenes(synthetic, SynthSettings(seed=0, scenes=4, size=768)))
        if settings.picture is not None:
            draw(settings.picture, synthetic)
        for name, scenes in (("real", settings.data), ("synthetic", synthetic)):
            if scenes is not None:
                count(name, scenes)


if __name__ == "__main__":
    main(tyro.cli(Settings))
