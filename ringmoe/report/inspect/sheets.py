"""Contact sheets: a few tiles that were kept, over all scenes, and a few that each rule dropped."""

import base64
import io
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ringmoe.data.inputs import Group
from ringmoe.data.layout import SPLITS, Split
from ringmoe.data.manifest import Manifest
from ringmoe.data.read import TileReader
from ringmoe.errors import ShardError
from ringmoe.modality import ModalitySpec
from ringmoe.raster.picture import DARKEST_DB, displayed_names, is_microwave, picture
from ringmoe.raster.scene import Pixels

# N tiles, D displayed channels, h x w pixels of a picture

_NUM_SHOWN: dict[Split, int] = {"train": 36, "val": 24}
_STRETCH_PERCENTILES = (1.0, 99.0)
_QUALITY = 88  # of WebP: a tenth of PNG's size, and no difference that an eye sees


@dataclass(frozen=True, kw_only=True)
class Thumb:
    """A tile on a sheet.

    Attributes:
        uri: The picture itself, as a data URI.
        caption: Where it was cut from.
    """

    uri: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Tiles that have something in common.

    Attributes:
        title: What it is: a split, or the reason for which they were dropped.
        total: How many there are of which some are shown.
        thumbs: Those that are shown.
        fault: Why none is shown; empty where nothing is wrong.
    """

    title: str
    total: int
    thumbs: tuple[Thumb, ...]
    fault: str = ""


@dataclass(frozen=True)
class Shown:
    """A tile's picture before it is stretched.

    Attributes:
        group: What its numbers are.
        numbers_Dhw: Channels that are shown.
        caption: Where it was cut from.
    """

    group: Group
    numbers_Dhw: Pixels
    caption: str


def draw(manifest: Manifest, key: str) -> tuple[str, list[Sheet], list[Sheet]]:
    """The sheets of one modality.

    All pictures of one group share one stretch, from its kept tiles where some are shown: so they can be compared.

    Returns:
        How colours are to be read, sheets of kept tiles for each split, and sheets of dropped ones for each reason.

    Raises:
        ShardError: The pictures of dropped tiles are missing or damaged.
    """
    entry = manifest.modalities[key]
    kept: dict[Split, list[Shown]] = {}
    faults: dict[Split, str] = {}
    for split in SPLITS:
        if split in entry.splits:
            try:
                kept[split] = _kept(manifest, key, split)
            except ShardError as error:
                kept[split], faults[split] = [], str(error)
    dropped = _dropped(manifest, key)
    stretch = Stretch(entry.spec, [*kept.values()], [*dropped.values()])
    sheets = [
        Sheet(
            title=split,
            total=entry.splits[split].num_samples,
            thumbs=tuple(stretch.thumb(tile) for tile in tiles),
            fault=faults.get(split, ""),
        )
        for split, tiles in kept.items()
    ]
    others = [
        Sheet(title=reason, total=total, thumbs=tuple(stretch.thumb(tile) for tile in dropped.get(reason, [])))
        for reason, total in entry.dropped.items()
    ]
    return colours_of(entry.spec), sheets, others


def colours_of(spec: ModalitySpec) -> str:
    """How the colours of a modality's pictures are to be read."""
    names = displayed_names(spec)
    colours = names[0] if len(names) == 1 else f"red {names[0]}, green {names[1]}, blue {names[2]}"
    if len(names) > 1 and is_microwave(spec):
        colours += " (grey: power, where polarisations are missing)"
    return f"{colours}{', in decibels' if is_microwave(spec) else ''}"


def spread(scenes_N: Pixels, num_scenes: int, num: int) -> list[int]:
    """Positions of a few samples, as evenly over the scenes and over the samples of each as can be.

    Args:
        scenes_N: Scene of each sample, ascending. Only a few entries are looked at.
        num_scenes: Scenes there are.
        num: Most samples that are wanted.
    """
    shares: Counter[int] = Counter()
    for turn in range(num):
        first = bisect_left(scenes_N, num_scenes * turn // num)
        shares[int(scenes_N[first % len(scenes_N)])] += 1  # of a scene without samples the share goes to the next one
    chosen: list[int] = []
    for scene, share in sorted(shares.items()):
        first, last = bisect_left(scenes_N, scene), bisect_right(scenes_N, scene)
        share = min(share, last - first)
        chosen += [first + (last - first) * (2 * i + 1) // (2 * share) for i in range(share)]
    return chosen


def _kept(manifest: Manifest, key: str, split: Split) -> list[Shown]:
    """A few tiles of a split."""
    entry = manifest.modalities[key]
    index = manifest.open_index(key, split)
    positions = spread(index["scene"], len(entry.scenes), _NUM_SHOWN[split])
    reader = TileReader([manifest], key, split)
    blocks, names = reader.read(np.array(positions, dtype=np.int64))
    reader.close()
    shown: dict[int, Shown] = {}
    for block in blocks:
        for place, pixels_CHW, number in zip(block.places_B.tolist(), block.pixels_BCHW, block.groups_B, strict=True):
            group = reader.statistics.groups[int(number)]
            nodata = None if group.nodata is None else float(group.nodata)
            numbers_Dhw = picture(pixels_CHW, entry.spec, units=group.units, nodata=nodata, absent=group.absent)
            shown[place] = Shown(group, numbers_Dhw, f"{names[place]}\n{group.sensor}")
    return [shown[place] for place in sorted(shown)]


def _dropped(manifest: Manifest, key: str) -> dict[str, list[Shown]]:
    """The few dropped tiles of each reason whose pictures were kept."""
    entry = manifest.modalities[key]
    found: dict[str, list[Shown]] = {}
    for tile, numbers_Dhw in zip(entry.examples.tiles, manifest.load_pictures(key), strict=True):
        where = f"{entry.scenes[tile.scene].name}, row {tile.row}, column {tile.col}"
        found.setdefault(tile.reason, []).append(Shown(tile.group, numbers_Dhw, f"{where}\n{tile.group.sensor}"))
    return found


class Stretch:
    """From numbers to colours, one rule for each group."""

    def __init__(
        self, spec: ModalitySpec, kept: Sequence[Sequence[Shown]], dropped: Sequence[Sequence[Shown]] = ()
    ) -> None:
        """Looks at the tiles that are shown of a modality, sheet by sheet."""
        darkest = DARKEST_DB if is_microwave(spec) else -np.inf
        self._limits: dict[tuple[object, ...], Pixels] = {}
        for sheets in (kept, dropped):  # what is dropped counts only in groups of which nothing kept is shown
            of_group: dict[tuple[object, ...], list[Pixels]] = {}
            for tile in (tile for sheet in sheets for tile in sheet):
                of_group.setdefault(tile.group.identity, []).append(tile.numbers_Dhw)
            for identity, pictures in of_group.items():
                self._limits.setdefault(identity, _limits(pictures, darkest))

    def thumb(self, tile: Shown) -> Thumb:
        """The picture of a tile; clear where there is no data."""
        low_D11, high_D11 = self._limits[tile.group.identity]
        missing_hw = np.isnan(tile.numbers_Dhw).any(axis=0)
        scaled_Dhw = np.nan_to_num((tile.numbers_Dhw - low_D11) / (high_D11 - low_D11)).clip(0.0, 1.0)
        rgba_hw4 = np.empty((*missing_hw.shape, 4), dtype=np.uint8)
        rgba_hw4[..., :3] = np.moveaxis(np.rint(255.0 * scaled_Dhw), 0, -1)
        rgba_hw4[..., 3] = np.where(missing_hw, 0, 255)
        file = io.BytesIO()
        Image.fromarray(rgba_hw4).save(file, "WEBP", quality=_QUALITY)
        return Thumb(uri=f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", caption=tile.caption)


def _limits(pictures: Sequence[Pixels], darkest: float) -> Pixels:
    """Lowest and highest number of each channel that is told from black and white: (2, D, 1, 1).

    Numbers down to ``darkest`` do not count: they stand for no power at all.
    """
    values_DN = np.concatenate([numbers.reshape(len(numbers), -1) for numbers in pictures], axis=1)
    limits = np.empty((2, len(values_DN), 1, 1))
    for channel, values_N in enumerate(values_DN):
        seen_N = values_N[np.isfinite(values_N) & (values_N > darkest)]
        low, high = np.percentile(seen_N, _STRETCH_PERCENTILES) if seen_N.size else (0.0, 1.0)
        limits[:, channel, 0, 0] = low, max(high, low + 1e-6)
    return limits
