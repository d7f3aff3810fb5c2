"""Finished units of places to the folder that readers see; the manifest last.

It may be killed at any moment and run again: every step finds what the step before it left.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ringmoe import modality as registry
from ringmoe.config import files
from ringmoe.data.entries import GroupEntry, RefusedFile
from ringmoe.data.layout import SPLITS, statistics_name
from ringmoe.data.manifest import Index, Manifest, write_file
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
from ringmoe.data.publish import merge_groups, publish, publish_footprints, publish_split
from ringmoe.data.storage import LocalFolder
from ringmoe.data.unit import UnitResult


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
    merged = merge_groups(results[PLACES], work)
    kept: Counter[int] = Counter()

    def count(_: UnitResult, rows: Index) -> None:
        kept.update(rows["place"].tolist())

    splits = {
        split: publish_split(PLACES, split, results[PLACES], work, root, dtype=PLACE_INDEX_DTYPE, each=count)
        for split in SPLITS
    }
    states = {
        key: [statistics.to_dict() for (modality, _), (_, statistics) in merged.items() if modality == key]
        for key in plan.scenes
    }
    modalities = {
        key: PlaceModality(
            spec=registry.get(key),
            scenes=entries,
            groups=tuple(
                GroupEntry(group=replace(group, channels=statistics.summary()), tiles=dict(tiles))
                for (modality, group), (tiles, statistics) in merged.items()
                if modality == key
            ),
        )
        for key, entries in plan.scenes.items()
    }
    scenes = {number: [member.scene for member in place.members] for number, place in enumerate(plan.places)}
    grouped = GroupedEntry(
        tile=plan.config.tiling.tile,
        codec=plan.config.codec,
        places=_places(plan, results[PLACES], quarantined, kept),
        modalities=modalities,
        splits={split: entry for split, entry in splits.items() if entry is not None},
        footprints=publish_footprints(PLACES, scenes, len(plan.places), work, root),
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
