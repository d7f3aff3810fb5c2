"""Finished units to the folder that readers see: shards under their names, index, statistics, and the manifest last.

It may be killed at any moment and run again, and even run twice at once: every step finds what the step before it left,
and writes what another would write. Nothing half-written lies in the folder that readers see.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.config import files
from ringmoe.data.durable import DurableFile
from ringmoe.data.entries import ExamplesEntry, GroupEntry, ModalityEntry, RefusedFile, ShardEntry, SplitEntry
from ringmoe.data.examples import choose
from ringmoe.data.inputs import Group
from ringmoe.data.layout import (
    INDEX_DTYPE,
    SPLITS,
    Split,
    examples_name,
    footprints_name,
    index_name,
    shard_name,
    statistics_name,
)
from ringmoe.data.manifest import Index, Manifest, write_file
from ringmoe.data.plan import Plan
from ringmoe.data.storage import FileEntry, LocalFolder
from ringmoe.data.unit import UnitResult, empty_statistics, examples_file, rows_file, shard_file, statistics_file
from ringmoe.data.writer import npy_bytes
from ringmoe.raster.footprint import footprint
from ringmoe.raster.scene import Scene
from ringmoe.raster.statistics import Statistics


@singledispatch  # places have a folder of their own kind
def publish(
    plan: Plan, results: Mapping[str, Sequence[UnitResult]], quarantined: Sequence[RefusedFile], work: Path, root: Path
) -> Manifest:
    """Makes the folder of shards from finished units.

    Args:
        plan: What was built.
        results: Result of every unit of each modality, in the order of the units.
        quarantined: Scenes that the units were built without.
        work: Folder of the units' files.
        root: Folder of the shards.

    Raises:
        OSError: A file cannot be written.
    """
    modalities = {key: _publish_modality(plan, key, results[key], quarantined, work, root) for key in plan.scenes}
    manifest = Manifest(
        settings=files.to_dict(plan.config),
        modalities=modalities,
        refused=plan.refused,
        quarantined=tuple(quarantined),
        folder=LocalFolder(root),
    )
    manifest.save(workshop=work)
    return Manifest.open(root)


def _publish_modality(
    plan: Plan, key: str, results: Sequence[UnitResult], quarantined: Sequence[RefusedFile], work: Path, root: Path
) -> ModalityEntry:
    """Everything of one modality."""
    (root / key).mkdir(exist_ok=True)
    groups = {group: merged for (_, group), merged in merge_groups(results, work).items()}
    states = [statistics.to_dict() for _, statistics in groups.values()]
    statistics_entry = write_file(root, statistics_name(key), json.dumps(states).encode(), workshop=work)
    numbers = {group: number for number, group in enumerate(groups)}

    def renumber(result: UnitResult, rows: Index) -> None:
        """From the unit's groups to those of the modality."""
        rows["group"] = np.array([numbers[found.group] for found in result.groups], dtype="<u2")[rows["group"]]

    splits = {
        split: publish_split(key, split, results, work, root, dtype=INDEX_DTYPE, each=renumber) for split in SPLITS
    }
    broken = {scene.name for scene in quarantined}
    units = [unit.without(broken) for unit in plan.units if unit.modality == key]
    scenes = {span.number: [span.scene] for unit in plan.units if unit.modality == key for span in unit.spans}
    dropped = sum((Counter(result.dropped) for result in results), Counter[str]())
    entry = ModalityEntry(
        spec=registry.get(key),
        tile=plan.config.tiling.tile,
        codec=plan.config.codec,
        scenes=plan.scenes[key],
        candidates=sum(unit.num_windows for unit in units),
        dropped=dict(sorted(dropped.items())),
        groups=tuple(
            GroupEntry(group=replace(group, channels=statistics.summary()), tiles=dict(tiles))
            for group, (tiles, statistics) in groups.items()
        ),
        splits={split: entry for split, entry in splits.items() if entry is not None},
        statistics=statistics_entry,
        footprints=publish_footprints(key, scenes, len(plan.scenes[key]), work, root),
        examples=_publish_examples(plan, key, results, work, root),
    )
    assert entry.candidates == entry.num_kept + dropped.total(), f"{key}: a window was lost or counted twice"
    return entry


def merge_groups(
    results: Sequence[UnitResult], work: Path
) -> dict[tuple[str, Group], tuple[Counter[Split], Statistics]]:
    """The groups of all units by modality, in the order in which they appear, with their tiles and statistics.

    The units' statistics are merged in the order of the units, so the last bits do not depend on who was quicker.
    """
    merged: dict[tuple[str, Group], tuple[Counter[Split], Statistics]] = {}
    for result in results:
        states = json.loads((work / statistics_file(result.stem)).read_bytes())
        for found, state in zip(result.groups, states, strict=True):
            fresh = Counter[Split](), empty_statistics(found.group, found.modality)
            tiles, statistics = merged.setdefault((found.modality, found.group), fresh)
            tiles.update(found.tiles)
            statistics.merge(Statistics.from_dict(state))
    return merged


def publish_footprints(key: str, scenes: Mapping[int, Sequence[Scene]], num: int, work: Path, root: Path) -> FileEntry:
    """Where each scene or place lies.

    Args:
        key: Modality, or the folder of places.
        scenes: Of each number the scenes that cover the ground; the first that knows where it is counts.
        num: How many numbers there are.
        work: Folder of the units' files.
        root: Folder of the shards.
    """
    corners_S42 = np.full((num, 4, 2), np.nan)
    for number, together in scenes.items():
        if known := [corners for corners in map(footprint, together) if corners is not None]:
            corners_S42[number] = known[0]
    return write_file(root, footprints_name(key), npy_bytes(corners_S42), workshop=work)


def _publish_examples(plan: Plan, key: str, results: Sequence[UnitResult], work: Path, root: Path) -> ExamplesEntry:
    """A few dropped windows of all units."""
    names = [scene.name for scene in plan.scenes[key]]
    chosen = list(choose([result.examples for result in results], names))
    pictures = [np.load(work / examples_file(results[part].stem), mmap_mode="r")[place] for part, place in chosen]
    stacked_NDhw = np.stack(pictures) if pictures else np.empty((0, 1, 1, 1), dtype=np.float32)
    written = write_file(root, examples_name(key), npy_bytes(stacked_NDhw), workshop=work)
    return ExamplesEntry(**vars(written), tiles=tuple(results[part].examples[place] for part, place in chosen))


def publish_split(
    key: str,
    split: Split,
    results: Sequence[UnitResult],
    work: Path,
    root: Path,
    *,
    dtype: np.dtype[Any],
    each: Callable[[UnitResult, Index], None],
) -> SplitEntry | None:
    """Names the shards of one split and writes its index.

    Args:
        key: Folder of the shards below ``root``.
        split: Which.
        results: Result of every unit in the order of the units.
        work: Folder of the units' files.
        root: Folder of the shards.
        dtype: Of a row of the index.
        each: Is handed the rows of each unit before they are written, and may change them.

    Returns:
        Shards and index; None where the split has no samples.
    """
    built = [(result, result.shards[split]) for result in results if split in result.shards]
    if not built:
        return None
    shards: list[ShardEntry] = []
    for number, (result, written) in enumerate(built):
        name = shard_name(key, split, number)
        with suppress(FileNotFoundError):  # a run before this one was killed after it had named this shard
            (work / shard_file(result.stem, split)).replace(root / name)
        shards.append(ShardEntry(name=name, samples=written.samples, bytes=written.bytes, sha256=written.sha256))
    name, shape = index_name(key, split), (sum(shard.samples for shard in shards),)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with DurableFile(root / name, workshop=work) as index:
        np.lib.format.write_array_header_1_0(index, header)
        for result, _ in built:
            rows = np.load(work / rows_file(result.stem, split), allow_pickle=False)
            each(result, rows)
            index.write(rows.tobytes())
        index.commit()
    entry = FileEntry(name=name, bytes=index.size, sha256=index.sha256)
    return SplitEntry(shards=tuple(shards), index=entry)
