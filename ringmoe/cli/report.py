"""``ringmoe report SOURCE RESULT``: one page on a compressed model beside the one that it was made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.cli.console import print_remote, write_page
from ringmoe.cli.progress import StageBar
from ringmoe.compress.report import page
from ringmoe.compress.save import Device, Resources
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import CheckpointError
from ringmoe.moe.usage import Usage

_PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A compressed model to look at.

    Attributes:
        source: The checkpoint that was compressed, or its run.
        result: What ringmoe-prune made of it.
        shards: Folders of shards, or their URLs: tiles to judge by, those kept out of training where there are some.
        remote: How those are read that are URLs.
        usage: File of usage statistics for the picture of the routing (default: those that training stored in the
            checkpoint, or what tiles of --shards show).
        beside: Other results of the same checkpoint for the same modalities, whose errors go into the table of
            variants.
        page: Where the page goes (default: report.html in the folder of the result). An older one is replaced.
        device: Where the models compute (default: auto, a GPU where there is one).
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    result: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULT")]
    shards: tuple[Location, ...] = ()
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    usage: Path | None = None
    beside: tuple[Path, ...] = ()
    page: Path | None = None
    device: Device = "auto"


def run(config: ReportConfig) -> None:
    """Measures, draws the page and writes it, whole or not at all.

    Raises:
        CheckpointError: A checkpoint is missing or damaged, or the page cannot be written.
        ConfigError: The result was made of another checkpoint.
    """
    write(
        open_checkpoint(config.source),
        open_checkpoint(config.result),
        config.shards,
        remote=config.remote,
        usage=Usage.load(config.usage) if config.usage is not None else None,
        beside=[open_checkpoint(path) for path in config.beside],
        target=config.page,
        device=config.device,
    )
    print_remote(config.shards, config.remote)


def write(
    source: CheckpointReader,
    result: CheckpointReader,
    shards: Sequence[Location],
    *,
    remote: RemoteConfig,
    usage: Usage | None = None,
    beside: Sequence[CheckpointReader] = (),
    target: Path | None = None,
    device: Device = "auto",
) -> None:
    """See ``run``; says what was not measured, and where the page lies."""
    with StageBar() as bar:
        text, missing = page(
            source,
            result,
            shards,
            remote=remote,
            usage=usage,
            beside=beside,
            device=Resources(device=device).torch_device,
            progress=bar,
        )
    lines = [f"not measured: {what}: {why}" for what, why in missing.items()]
    option = "ringmoe report SOURCE RESULT --page"
    write_page(target or result.path / _PAGE, text, lines, option=option, error=CheckpointError)
