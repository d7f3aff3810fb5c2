"""From a folder of shards to one page of HTML that needs nothing else: no network, no script, no other file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ringmoe.data.entries import RefusedFile
from ringmoe.data.manifest import Manifest
from ringmoe.data.places import PlaceManifest
from ringmoe.report import html
from ringmoe.report.inspect import histograms, maps, places, tiles

NUM_REASON_COLOURS = 12
"""Colours of the page's style for reasons: at least as many as there are rules."""

OnProgress = Callable[[str], None]
"""Called with what is done next."""


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
        manifest: The folder of shards, of single tiles or of grouped samples.
        progress: Told what is done next.

    Returns:
        The page, and what is wrong with tiles that could not be drawn; the page says it, too.

    Raises:
        ShardError: A file that lies beside the shards is missing or damaged.
    """
    tell = progress or (lambda _: None)
    view = places.look(manifest, tell) if isinstance(manifest, PlaceManifest) else tiles.look(manifest, tell)
    shards = [shard for samples in manifest.samples for shard in samples.shards]
    page = html.render(
        __package__,
        name=manifest.folder.name,
        manifest=manifest,
        view=view,
        num_shards=len(shards),
        num_bytes=sum(shard.bytes for shard in shards),
        colours={reason: number % NUM_REASON_COLOURS for number, reason in enumerate(view.reasons)},
        refused=_left_out(manifest.refused),
        quarantined=_left_out(manifest.quarantined),
        maps=maps.draw(view.located),
        columns=histograms.COLUMNS,
        plot=(histograms.WIDTH, histograms.HEIGHT),
        settings=json.dumps(manifest.settings, indent=2),
    )
    return page, view.faults


def _left_out(entries: Sequence[RefusedFile]) -> list[LeftOut]:
    """Those with the same message together, the most frequent first."""
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        names.setdefault((entry.code, entry.message), []).append(entry.name)
    found = [LeftOut(code, message, tuple(files)) for (code, message), files in names.items()]
    return sorted(found, key=lambda each: -len(each.names))
