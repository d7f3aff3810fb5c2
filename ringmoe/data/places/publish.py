"""Finished units of places to the folder that readers see; the manifest last.

It may be killed at any moment and run again: every step finds what the step before it left.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ringmoe import modality as registry
from ringmoe.config import files
from ringmoe.data.durable import DurableFile
from ringmoe.data.entries import GroupEntry, RefusedFile, ShardEntry, SplitEntry
from ringmoe.data.inputs import Group
from ringmoe.data.layout import SPLITS, Split, index_name, shard_name, statistics_name
from ringmoe.data.manifest import Manifest, write_file
from ringmoe.data.places.manifest import (
    PLACE_INDEX_DTYPE,
    PLACES,
    GroupedEntry,
    MemberEntry,
    PlaceEntry,
    PlaceManifest,
    PlaceModality,
)
from ringmoe.data.places.plan import PlacePlan
from ringmoe.data.places.unit import PlaceUnit, place_of_account
from ringmoe.data.publish import publish
from ringmoe.data.storage import FileEntry, LocalFolder
from ringmoe.data.unit import UnitResult, empty_statistics, rows_file, shard_file, statistics_file
from ringmoe.raster.statistics import Statistics

_Merged = dict[tuple[str, Group], tuple[Counter[Split], Statistics]]


@publish.register
def publish_places(
    plan: PlacePlan,
    results: Mapping[str, Sequence[UnitResult]],
    quarantined: Sequence[RefusedFile],
    work: Path,
    root: Path,
) -> Manifest:
    """Makes the folder of shards from finished units of places.

    Raises:
        OSError: A file cannot be written.
    """
    (root / PLACES).mkdir(exist_ok=True)
    merged = _merge_groups(results[PLACES], work)
    kept: Counter[int] = Counter()
    splits = {split: _publish_split(split, results[PLACES], kept, work, root) for split in SPLITS}
    states = {
        key: [statistics.to_dict() for (modality, _), (_, statistics) in merged.items() if modality == key]
        for key in plan.scenes
    }
    modalities = {
        key: PlaceModality(
            spec=registry.get(key),
            scenes=scenes,
            groups=tuple(
                GroupEntry(group=replace(group, channels=statistics.summary()), tiles=dict(tiles))
                for (modality, group), (tiles, statistics) in merged.items()
                if modality == key
            ),
        )
        for key, scenes in plan.scenes.items()
    }
    grouped = GroupedEntry(
        tile=plan.config.tiling.tile,
        codec=plan.config.codec,
        places=_places(plan, results[PLACES], quarantined, kept),
        modalities=modalities,
        splits={split: entry for split, entry in splits.items() if entry is not None},
        statistics=write_file(root, statistics_name(PLACES), json.dumps(states).encode(), workshop=work),
    )
    manifest = PlaceManifest(
        settings=files.to_dict(plan.config),
        modalities={},
        refused=plan.refused,
        quarantined=tuple(quarantined),
        folder=LocalFolder(root),
        grouped=grouped,
    )
    manifest.save(workshop=work)
    return PlaceManifest.open(root)


def _places(
    plan: PlacePlan, results: Sequence[UnitResult], quarantined: Sequence[RefusedFile], kept: Counter[int]
) -> tuple[PlaceEntry, ...]:
    """The account of each place. One that lost too many scenes to quarantine has no windows."""
    broken = {scene.name for scene in quarantined}
    candidates: Counter[int] = Counter()
    dropped: dict[int, Counter[str]] = {}
    left_out: dict[int, Counter[str]] = {}
    slugs: dict[int, str] = {}
    for unit in plan.units:
        assert isinstance(unit, PlaceUnit)
        slugs.update((span.number, span.slug) for span in unit.places)
        for span in unit.without(broken).places:
            candidates[span.number] += span.num_windows
    for result in results:
        for counts, told in ((result.dropped, dropped), (result.left_out, left_out)):
            for name, num in counts.items():
                number, words = place_of_account(name)
                told.setdefault(number, Counter())[words] += num
    return tuple(
        PlaceEntry(
            name=place.name,
            slug=slugs[number],
            members=tuple(
                MemberEntry(
                    name=member.name, modality=member.scene.modality, scene=member.scene.name, ratio=member.ratio
                )
                for member in place.without(broken).members
            ),
            candidates=candidates[number],
            kept=kept[number],
            dropped=dict(sorted(dropped.get(number, Counter()).items())),
            left_out=dict(sorted(left_out.get(number, Counter()).items())),
        )
        for number, place in enumerate(plan.places)
    )


def _merge_groups(results: Sequence[UnitResult], work: Path) -> _Merged:
    """The groups of all units, merged in the order of the units: the last bits do not depend on who was quicker."""
    merged: _Merged = {}
    for result in results:
        states = json.loads((work / statistics_file(result.stem)).read_bytes())
        for found, state in zip(result.groups, states, strict=True):
            fresh = Counter[Split](), empty_statistics(found.group, found.modality)
            tiles, statistics = merged.setdefault((found.modality, found.group), fresh)
            tiles.update(found.tiles)
            statistics.merge(Statistics.from_dict(state))
    return merged


def _publish_split(
    split: Split, results: Sequence[UnitResult], kept: Counter[int], work: Path, root: Path
) -> SplitEntry | None:
    """Names the shards of one split, writes its index and counts the samples of each place; None without samples."""
    built = [(result, result.shards[split]) for result in results if split in result.shards]
    if not built:
        return None
    shards = []
    for number, (result, written) in enumerate(built):
        name = shard_name(PLACES, split, number)
        with suppress(FileNotFoundError):  # a run before this one was killed after it had named this shard
            (work / shard_file(result.stem, split)).replace(root / name)
        shards.append(ShardEntry(name=name, samples=written.samples, bytes=written.bytes, sha256=written.sha256))
    header = {
        "descr": np.lib.format.dtype_to_descr(PLACE_INDEX_DTYPE),
        "fortran_order": False,
        "shape": (sum(shard.samples for shard in shards),),
    }
    with DurableFile(root / index_name(PLACES, split), workshop=work) as index:
        np.lib.format.write_array_header_1_0(index, header)
        for result, _ in built:
            rows = np.load(work / rows_file(result.stem, split), allow_pickle=False)
            kept.update(rows["place"].tolist())
            index.write(rows.tobytes())
        index.commit()
    entry = FileEntry(name=index_name(PLACES, split), bytes=index.size, sha256=index.sha256)
    return SplitEntry(shards=tuple(shards), index=entry)
