"""What is shown of shards of single tiles: an account for each modality."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from ringmoe.data.entries import ModalityEntry
from ringmoe.data.layout import SPLITS
from ringmoe.data.manifest import Manifest
from ringmoe.raster.quality import REASONS
from ringmoe.report.inspect import histograms, maps, sheets
from ringmoe.report.inspect.view import NUM_MODALITY_COLOURS, Account, Section, View


def look(manifest: Manifest, tell: Callable[[str], None]) -> View:
    """Looks at a folder.

    Args:
        manifest: The folder.
        tell: Told what is done next.

    Raises:
        ShardError: A file that lies beside the shards is missing or damaged.
    """
    reasons = sorted({reason for entry in manifest.modalities.values() for reason in entry.dropped})
    broken = {scene.name for scene in manifest.quarantined}
    sections = []
    for key, entry in manifest.modalities.items():
        tell(key)
        sections.append(_section(manifest, key, entry))
    tell("map")
    located, unplaced = _places(manifest)
    return View(
        noun="scene",
        splits=SPLITS,
        accounts=[_account(key, entry, reasons, broken) for key, entry in manifest.modalities.items()],
        reasons=reasons,
        words=REASONS,
        sections=sections,
        located=located,
        unplaced=unplaced,
    )


def _account(key: str, entry: ModalityEntry, reasons: Sequence[str], broken: Collection[str]) -> Account:
    scenes = [scene for scene in entry.scenes if scene.name not in broken]
    return Account(
        key=key,
        title=entry.spec.title,
        scenes=len(scenes),
        synthetic=sum(scene.synthetic for scene in scenes),
        candidates=entry.candidates,
        kept={split: entry.splits[split].num_samples if split in entry.splits else 0 for split in SPLITS},
        dropped={reason: entry.dropped.get(reason, 0) for reason in reasons},
    )


def _section(manifest: Manifest, key: str, entry: ModalityEntry) -> Section:
    colours, kept, dropped = sheets.draw(manifest, key)
    states = manifest.load_statistics(key)
    return Section(
        key=key,
        title=entry.spec.title,
        sides=f"{entry.tile} x {entry.tile}",
        colours=colours,
        kept=kept,
        dropped=dropped,
        groups=[histograms.view(entry.spec, found, state) for found, state in zip(entry.groups, states, strict=True)],
    )


def _places(manifest: Manifest) -> tuple[list[maps.Footprint], dict[str, list[str]]]:
    """Scenes with a place, and the names of those of each modality that have none."""
    located: list[maps.Footprint] = []
    unplaced: dict[str, list[str]] = {}
    for number, (key, entry) in enumerate(manifest.modalities.items()):
        corners_S42 = manifest.load_footprints(key)
        placed = [
            (scene.name, corners_42)
            for scene, corners_42 in zip(entry.scenes, corners_S42, strict=True)
            if np.isfinite(corners_42).all()
        ]
        located += [maps.Footprint(number % NUM_MODALITY_COLOURS, name, corners_42) for name, corners_42 in placed]
        names = {name for name, _ in placed}
        if others := [scene.name for scene in entry.scenes if scene.name not in names]:
            unplaced[key] = others
    return located, unplaced
