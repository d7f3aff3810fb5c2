"""``ringmoe shards inspect``: one page that shows what a folder of shards holds, and what was dropped and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ringmoe.cli.console import console
from ringmoe.data.durable import DurableFile
from ringmoe.data.manifest import Manifest
from ringmoe.data.storage import Location, scheme_of
from ringmoe.errors import ConfigError, ShardError
from ringmoe.report.inspect import render

_PAGE = "inspect.html"


@dataclass(frozen=True, kw_only=True)
class ShardsInspect:
    """A folder of shards to look at.

    Attributes:
        folder: Made by ``ringmoe shards build``, on this machine.
        page: Where the page goes; inspect.html in the folder if not given. An older one is replaced.
    """

    folder: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    page: Path | None = None


def run(config: ShardsInspect) -> None:
    """Draws the page and writes it, whole or not at all.

    Raises:
        ConfigError: The folder is a URL.
        ShardError: It is no finished folder of shards, a file beside the shards is missing or damaged, or the page
            cannot be written.
    """
    if scheme_of(config.folder) is not None:
        raise ConfigError(
            f"{config.folder}: shards are inspected only in a folder on this machine; copy it here first. "
            "`ringmoe shards list` says of a URL what it holds"
        )
    manifest = Manifest.open(config.folder)
    target = config.page or Path(config.folder) / _PAGE
    with console.status("drawing") as status:
        page, faults = render(manifest, lambda what: status.update(f"drawing {what}"))
    try:
        with DurableFile(target) as file:
            file.write(page.encode())
            file.commit()
    except OSError as error:
        raise ShardError(
            f"{target} cannot be written: {error.strerror}. Choose another place: --page FILE.html"
        ) from error
    for fault in faults:
        console.print(f"not drawn: {fault}", soft_wrap=True, markup=False)
    console.print(f"{target} ({file.size / 1e6:.1f} MB): open it in a browser", soft_wrap=True, markup=False)
