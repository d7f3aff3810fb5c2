"""From a folder of shards to one page of HTML that needs nothing else: no network, no script, no other file."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources

import numpy as np
from jinja2 import Environment, StrictUndefined

from ringmoe.data.entries import ModalityEntry, RefusedFile
from ringmoe.data.layout import SPLITS
from ringmoe.data.manifest import Manifest
from ringmoe.raster.quality import REASONS
from ringmoe.report.inspect import histograms, maps, sheets

NUM_REASON_COLOURS = 12
"""Colours of the page's style for reasons: at least as many as there are rules."""

_NUM_MODALITY_COLOURS = 8

OnProgress = Callable[[str], None]
"""Called with what is done next."""


@dataclass(frozen=True)
class Account:
    """What became of the windows of one modality.

    Attributes:
        key: The modality.
        title: What a person calls it.
        scenes: Scenes that windows were cut from: those in quarantine are none of them.
        synthetic: Those of them that were drawn, not observed.
        candidates: Windows.
        kept: Tiles of each split.
        dropped: Windows that each rule dropped; all rules of all modalities.
        num_bytes: Size of the shards.
        shards: How many shards there are.
    """

    key: str
    title: str
    scenes: int
    synthetic: int
    candidates: int
    kept: dict[str, int]
    dropped: dict[str, int]
    num_bytes: int
    shards: int


@dataclass(frozen=True)
class Section:
    """What is shown of one modality beside its account.

    Attributes:
        account: Its account.
        tile: Height and width of its tiles, pixels.
        colours: How the colours of its pictures are to be read.
        kept: Sheets of kept tiles.
        dropped: Sheets of dropped ones.
        groups: Histograms and numbers of each group.
    """

    account: Account
    tile: int
    colours: str
    kept: list[sheets.Sheet]
    dropped: list[sheets.Sheet]
    groups: list[histograms.GroupView]


@dataclass(frozen=True)
class LeftOut:
    """Files or scenes that were left out for the same reason.

    Attributes:
        code: The reason, in a word.
        message: The reason.
        names: The files.
    """

    code: str
    message: str
    names: tuple[str, ...]


def render(manifest: Manifest, progress: OnProgress | None = None) -> tuple[str, list[str]]:
    """Draws the page.

    Args:
        manifest: The folder of shards.
        progress: Told what is done next.

    Returns:
        The page, and what is wrong with tiles that could not be drawn; the page says it, too.

    Raises:
        ShardError: A file that lies beside the shards is missing or damaged.
    """
    tell = progress or (lambda _: None)
    reasons = sorted({reason for entry in manifest.modalities.values() for reason in entry.dropped})
    broken = {scene.name for scene in manifest.quarantined}
    accounts = [_account(key, entry, reasons, broken) for key, entry in manifest.modalities.items()]
    sections = []
    for account, entry in zip(accounts, manifest.modalities.values(), strict=True):
        tell(account.key)
        sections.append(_section(manifest, account, entry))
    tell("map")
    located, unplaced = _places(manifest)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources(__package__) / "page.html").read_text(encoding="utf-8"))
    page = template.render(
        name=manifest.root.absolute().name,
        manifest=manifest,
        splits=SPLITS,
        reasons=reasons,
        words=REASONS,
        colours={reason: number % NUM_REASON_COLOURS for number, reason in enumerate(reasons)},
        accounts=accounts,
        total=_total(accounts, reasons),
        sections=sections,
        refused=_left_out(manifest.refused),
        quarantined=_left_out(manifest.quarantined),
        maps=maps.draw(located),
        unplaced=unplaced,
        columns=histograms.COLUMNS,
        plot=(histograms.WIDTH, histograms.HEIGHT),
        settings=json.dumps(manifest.settings, indent=2),
    )
    return page, [sheet.fault for section in sections for sheet in section.kept if sheet.fault]


def _account(key: str, entry: ModalityEntry, reasons: Sequence[str], broken: Collection[str]) -> Account:
    scenes = [scene for scene in entry.scenes if scene.name not in broken]
    shards = [shard for samples in entry.splits.values() for shard in samples.shards]
    return Account(
        key=key,
        title=entry.spec.title,
        scenes=len(scenes),
        synthetic=sum(scene.synthetic for scene in scenes),
        candidates=entry.candidates,
        kept={split: entry.splits[split].num_samples if split in entry.splits else 0 for split in SPLITS},
        dropped={reason: entry.dropped.get(reason, 0) for reason in reasons},
        num_bytes=sum(shard.bytes for shard in shards),
        shards=len(shards),
    )


def _total(accounts: Sequence[Account], reasons: Sequence[str]) -> Account:
    """All modalities together."""
    return Account(
        key="all",
        title="all modalities",
        scenes=sum(account.scenes for account in accounts),
        synthetic=sum(account.synthetic for account in accounts),
        candidates=sum(account.candidates for account in accounts),
        kept={split: sum(account.kept[split] for account in accounts) for split in SPLITS},
        dropped={reason: sum(account.dropped[reason] for account in accounts) for reason in reasons},
        num_bytes=sum(account.num_bytes for account in accounts),
        shards=sum(account.shards for account in accounts),
    )


def _section(manifest: Manifest, account: Account, entry: ModalityEntry) -> Section:
    colours, kept, dropped = sheets.draw(manifest, account.key)
    states = manifest.load_statistics(account.key)
    return Section(
        account=account,
        tile=entry.tile,
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
        located += [maps.Footprint(number % _NUM_MODALITY_COLOURS, name, corners_42) for name, corners_42 in placed]
        names = {name for name, _ in placed}
        if others := [scene.name for scene in entry.scenes if scene.name not in names]:
            unplaced[key] = others
    return located, unplaced


def _left_out(entries: Sequence[RefusedFile]) -> list[LeftOut]:
    """Those with the same message together, the most frequent first."""
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        names.setdefault((entry.code, entry.message), []).append(entry.name)
    found = [LeftOut(code, message, tuple(files)) for (code, message), files in names.items()]
    return sorted(found, key=lambda each: -len(each.names))
