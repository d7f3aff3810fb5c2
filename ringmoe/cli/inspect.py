"""``ringmoe shards inspect``: one page that shows what a folder of shards holds, and what was dropped and why."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ringmoe.cli.console import console, print_remote, write_page
from ringmoe.data.places import open_folder
from ringmoe.data.storage import LocalFolder, Location, RemoteConfig
from ringmoe.errors import ShardError
from ringmoe.report.inspect import render

_PAGE = "inspect.html"


@dataclass(frozen=True, kw_only=True)
class ShardsInspect:
    """A folder of shards to look at.

    Attributes:
        folder: Made by ``ringmoe shards build``; a URL where it lies elsewhere.
        page: Where the page goes; if not given inspect.html in the folder, of a URL in the one where you are. An older
            one is replaced.
        remote: How a URL is read.
    """

    folder: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    page: Path | None = None
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def run(config: ShardsInspect) -> None:
    """Draws the page and writes it, whole or not at all.

    Raises:
        ShardError: It is no finished folder of shards, a file beside the shards is missing or damaged, or the page
            cannot be written.
    """
    manifest = open_folder(config.folder, config.remote)
    target = config.page or (manifest.root if isinstance(manifest.folder, LocalFolder) else Path()) / _PAGE
    with console.status("drawing") as status:
        page, faults = render(manifest, lambda what: status.update(f"drawing {what}"))
    print_remote([config.folder], config.remote)
    write_page(target, page, [f"not drawn: {fault}" for fault in faults], option="--page", error=ShardError)
