"""What is shown of shards of grouped samples: an account for each kind of place, and samples with all their tiles."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from ringmoe.data.layout import SPLITS, Split
from ringmoe.data.places import PlaceManifest, PlaceReader, PlaceSample
from ringmoe.data.places.manifest import PlaceEntry, undated
from ringmoe.data.unit import group_of
from ringmoe.errors import ShardError
from ringmoe.modality import get
from ringmoe.raster.picture import picture
from ringmoe.raster.quality import REASONS
from ringmoe.report.inspect import histograms, maps
from ringmoe.report.inspect.sheets import Shown, Stretch, colours_of, spread
from ringmoe.report.inspect.view import NUM_MODALITY_COLOURS, Account, Section, Strips, View

_NUM_SHOWN: dict[Split, int] = {"train": 18, "val": 12}
_KEPT = "kept"


def look(manifest: PlaceManifest, tell: Callable[[str], None]) -> View:
    """Looks at a folder.

    Args:
        manifest: The folder.
        tell: Told what is done next.

    Raises:
        ShardError: A file that lies beside the shards is missing or damaged.
    """
    places = manifest.grouped.places
    reasons = sorted({undated(words) for place in places for words in place.dropped})
    kinds: dict[str, list[PlaceEntry]] = {}
    for place in places:
        kinds.setdefault(place.kind, []).append(place)
    tell("samples")
    strips = _strips(manifest)
    tell("map")
    located, unplaced = _located(manifest, list(kinds))
    left_out = sum((Counter(place.left_out) for place in places), Counter[str]())
    return View(
        noun="place",
        splits=(_KEPT,),
        accounts=[_account(manifest, kind, found, reasons) for kind, found in kinds.items()],
        reasons=reasons,
        words={reason: REASONS[rule] for reason in reasons if (rule := reason.partition(" of ")[0]) in REASONS},
        sections=[_section(manifest, key) for key in manifest.grouped.modalities],
        strips=strips,
        located=located,
        unplaced=unplaced,
        places=[_words(place) for place in places],
        left_out=[f"{num:,} tiles: {words}" for words, num in sorted(left_out.items())],
    )


def _words(place: PlaceEntry) -> str:
    members = ", ".join(f"{member.name} ({member.scene})" for member in place.members)
    return f"{place.name}: {place.kept:,} of {place.candidates:,} windows kept; {members}"


def _account(manifest: PlaceManifest, kind: str, places: list[PlaceEntry], reasons: list[str]) -> Account:
    synthetic = {scene.name for scenes in manifest.scenes.values() for scene in scenes if scene.synthetic}
    scenes = [member.scene for place in places for member in place.members]
    dropped: Counter[str] = Counter()
    for place in places:
        for words, num in place.dropped.items():
            dropped[undated(words)] += num
    return Account(
        key=kind,
        title=f"{len(places):,} {'place' if len(places) == 1 else 'places'}",
        scenes=len(scenes),
        synthetic=sum(scene in synthetic for scene in scenes),
        candidates=sum(place.candidates for place in places),
        kept={_KEPT: sum(place.kept for place in places)},
        dropped={reason: dropped[reason] for reason in reasons},
    )


def _section(manifest: PlaceManifest, key: str) -> Section:
    grouped = manifest.grouped
    entry = grouped.modalities[key]
    members = [member for place in grouped.places for member in place.members if member.modality == key]
    sides = sorted({grouped.tile * member.ratio for member in members})
    states = manifest.load_statistics(key)
    return Section(
        key=key,
        title=entry.spec.title,
        sides=" and ".join(f"{side} x {side}" for side in sides) or "no",
        colours=colours_of(entry.spec),
        groups=[histograms.view(entry.spec, found, state) for found, state in zip(entry.groups, states, strict=True)],
    )


def _strips(manifest: PlaceManifest) -> list[Strips]:
    """A few samples of each split; all pictures of one group share one stretch."""
    found: dict[Split, list[list[tuple[str, Shown]]]] = {}
    faults: dict[Split, str] = {}
    for split in SPLITS:
        if split in manifest.grouped.splits:
            try:
                found[split] = [_shown(sample) for sample in _samples(manifest, split)]
            except ShardError as error:
                found[split], faults[split] = [], str(error)
    tiles = [tile for samples in found.values() for sample in samples for tile in sample]
    stretches = {
        key: Stretch(get(key), [[shown for modality, shown in tiles if modality == key]]) for key in dict(tiles)
    }
    return [
        Strips(
            title=split,
            total=manifest.grouped.splits[split].num_samples,
            strips=tuple(tuple(stretches[key].thumb(shown) for key, shown in sample) for sample in samples),
            fault=faults.get(split, ""),
        )
        for split, samples in found.items()
    ]


def _samples(manifest: PlaceManifest, split: Split) -> list[PlaceSample]:
    places_N = manifest.open_rows(split)["place"]
    reader = PlaceReader(manifest, split)
    return reader.__getitems__(spread(places_N, len(manifest.grouped.places), _NUM_SHOWN[split]))


def _shown(sample: PlaceSample) -> list[tuple[str, Shown]]:
    """The tiles of a sample, each with its modality."""
    shown = []
    for name, tile in sample.tiles.items():
        record = tile.record
        numbers_Dhw = picture(
            tile.pixels_CHW, get(record.modality), units=record.units, nodata=record.nodata, absent=record.absent
        )
        caption = f"{sample.place}, row {sample.row}, column {sample.col}: {name}\n{record.source}"
        shown.append((record.modality, Shown(group_of(record), numbers_Dhw, caption)))
    return shown


def _located(manifest: PlaceManifest, kinds: list[str]) -> tuple[list[maps.Footprint], dict[str, list[str]]]:
    """Places on the map, and the names of those of each kind that are nowhere."""
    located: list[maps.Footprint] = []
    unplaced: dict[str, list[str]] = {}
    for place, corners_42 in zip(manifest.grouped.places, manifest.load_footprints_of_places(), strict=True):
        kind = place.kind
        if np.isfinite(corners_42).all():
            located.append(maps.Footprint(kinds.index(kind) % NUM_MODALITY_COLOURS, place.name, corners_42))
        else:
            unplaced.setdefault(kind, []).append(place.name)
    return located, unplaced
