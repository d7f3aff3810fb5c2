"""What is printed of places: before a build, which scenes are together, and after it, what became of their windows."""

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ringmoe.cli.console import console
from ringmoe.data.places import PlaceManifest
from ringmoe.data.places.manifest import undated
from ringmoe.raster.places import LeftOut, Place
from ringmoe.raster.quality import REASONS
from ringmoe.raster.tiling import TilingConfig


def print_places(places: Sequence[Place], left_out: Sequence[LeftOut], tiling: TilingConfig) -> None:
    """Prints which scenes are of one place, and which are of none."""
    for place in places:
        windows = tiling.grid(place.height, place.width).num_tiles
        told = f"{place.name}\n  {len(place.members)} scenes, {_count(windows, 'window')} of {tiling.tile} pixels"
        for member in place.members:
            finer = f", {member.ratio} times as fine" if member.ratio > 1 else ""
            told += f"\n  {member.name}: {member.scene.name}, {member.scene.acquired or 'time not known'}{finer}"
        console.print(told, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{_count(len(places), 'place')}; {_count(len(left_out), 'scene')} of none")
    for alone in left_out:
        console.print(f"  {escape(alone.scene.name)}: {escape(alone.message)}", soft_wrap=True)


def describe_places(manifest: PlaceManifest) -> None:
    """Prints what shards of places hold: places of equal members together, then samples, then what was dropped."""
    table = Table("members", title=escape(str(manifest.folder)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("places", "windows", "dropped", "samples", "tiles"):
        table.add_column(column, justify="right")
    grouped = manifest.grouped
    kinds: dict[str, Counter[str]] = {}
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for place in grouped.places:
        kinds.setdefault(place.kind, Counter()).update(
            places=1,
            windows=place.candidates,
            dropped=sum(place.dropped.values()),
            samples=place.kept,
            tiles=place.num_tiles,
        )
        for total, found in ((dropped, place.dropped), (left_out, place.left_out)):
            for words, num in found.items():
                total[undated(words)] += num
    for members, numbers in kinds.items():
        table.add_row(members, *(f"{number:,}" for number in numbers.values()))
    console.print(table)
    for split, entry in grouped.splits.items():
        size = decimal(sum(shard.bytes for shard in entry.shards))
        samples, shards = _count(entry.num_samples, "sample"), _count(len(entry.shards), "shard")
        console.print(f"{split}: {samples} of {grouped.tile} pixels; {shards}, {size}")
    if grouped.codec != "raw":
        console.print(f"pixels are coded without loss, {grouped.codec}")
    if lost := sum(1 for place in grouped.places if not place.candidates):
        console.print(f"{_count(lost, 'place')} without windows: scenes of theirs are quarantined")
    for what, counts in (("windows dropped", dropped), ("tiles left out of samples", left_out)):
        if counts:
            console.print(f"{what}: {', '.join(f'{num:,} {words}' for words, num in sorted(counts.items()))}")
    broken = {words.partition(" of ")[0] for words in (*dropped, *left_out)}
    for reason in filter(broken.__contains__, REASONS):
        console.print(f"  {reason}: {REASONS[reason]}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
