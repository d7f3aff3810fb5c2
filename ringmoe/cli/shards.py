"""``ringmoe shards``: build shards from scenes, say what a folder holds, check it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ringmoe.cli.console import console, print_remote
from ringmoe.cli.places import describe_places
from ringmoe.cli.progress import BuildBar
from ringmoe.cli.scenes import SceneOptions, print_files, print_left_alone
from ringmoe.data.build import BuildReport, ShareReport, build_share
from ringmoe.data.build import build as build_shards
from ringmoe.data.entries import GroupEntry
from ringmoe.data.layout import SPLITS
from ringmoe.data.manifest import Manifest
from ringmoe.data.places import PlaceManifest, open_folder
from ringmoe.data.plan import BuildConfig
from ringmoe.data.rounds import Share
from ringmoe.data.storage import LocalFolder, Location, RemoteConfig
from ringmoe.data.team import help_build
from ringmoe.data.verify import verify_tiles
from ringmoe.distributed.environment import find_place
from ringmoe.distributed.team import meet
from ringmoe.errors import ConfigError, ShardError
from ringmoe.raster.quality import REASONS

_NUM_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class ShardsBuild(BuildConfig, SceneOptions):
    """Cut raw scenes into shards.

    Attributes:
        paths: Files and folders of scenes, and last the folder of the shards: new or empty, or of the same build,
            which is then continued.
        workers: Processes, or processes of each rank under mpirun or srun; the shards are the same for any number.
        share: Build one share of many, like 3/16 (the first is 0/16), beside others that do not know of it: a task of
            a batch system's array. The one that finishes last publishes.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCENES... OUT")]
    workers: int = 1
    share: str | None = None

    def __post_init__(self) -> None:
        """Checks the command line.

        Raises:
            ConfigError: Too few paths, no worker, or a setting out of range.
        """
        super().__post_init__()
        if len(self.paths) < 2:
            raise ConfigError("name at least one file or folder of scenes, and behind them the folder of the shards")
        if self.workers < 1:
            raise ConfigError(f"--workers must be at least 1; it is {self.workers}")
        if self.share is not None:
            Share.parse(self.share)


@dataclass(frozen=True, kw_only=True)
class ShardsFolder:
    """A folder of shards.

    Attributes:
        folder: Made by ``ringmoe shards build``; a URL where it lies elsewhere.
        remote: How a URL is read.
    """

    folder: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def build(config: ShardsBuild) -> None:
    """Builds shards, or continues an interrupted build; under mpirun or srun by all ranks together.

    Raises:
        ConfigError: A share by several ranks, or they do not find each other.
        SceneError: There is no usable scene.
        ShardError: The folder cannot be used or written.
        TeamError: Another rank failed.
    """
    declarations = config.load()
    settings = BuildConfig(**{field.name: getattr(config, field.name) for field in fields(BuildConfig)})
    *scenes, out = config.paths
    with meet(find_place(os.environ)) as team:
        if team is not None and config.share is not None:
            raise ConfigError("--share is for processes that do not know of each other; ranks share without it")
        if team is not None and not team.leads:
            help_build(team, settings, config.workers)
            return
        with BuildBar() as bar:
            whole = partial(build_shards, team=team)
            which = whole if config.share is None else partial(build_share, share=Share.parse(config.share))
            report = which(
                scenes,
                out,
                settings,
                workers=config.workers,
                declarations=declarations,
                modality=config.modality,
                calibrate=config.calibrate,
                progress=bar,
            )
    _tell(report, config)


def _tell(report: BuildReport | ShareReport, config: ShardsBuild) -> None:
    """Prints what a build did."""
    out = config.paths[-1]
    if isinstance(report, ShareReport):
        left = f"{report.num_left:,} units of others are missing" if report.num_left else "another publishes it now"
        console.print(
            f"share {config.share} of {out} is built ({report.num_units:,} units); {left}. Whoever finishes last "
            "publishes; if one was stopped or failed, run it again",
            soft_wrap=True,
            highlight=False,
        )
        return
    if not report.published and report.num_reused == report.num_units:
        console.print(f"reused {out}: it was built before from the same scenes and settings")
    elif report.num_reused:
        console.print(f"continued: {report.num_reused} of {report.num_units} units were finished before")
    print_left_alone(report.catalogue)
    _describe(report.manifest)


def show(config: ShardsFolder) -> None:
    """Says what a folder of shards holds.

    Raises:
        ShardError: It is no finished folder of shards.
    """
    _describe(open_folder(config.folder, config.remote))


def verify(config: ShardsFolder) -> None:
    """Reads every file and compares its checksum, and every tile or sample and compares it with the index.

    Raises:
        ShardError: A file is missing, its content is not what was written, or index and shards disagree.
    """
    manifest = open_folder(config.folder, config.remote)
    num_files, num_samples = len(manifest.all_files), sum(samples.num_samples for samples in manifest.samples)
    num_shards = sum(len(samples.shards) for samples in manifest.samples)
    what = "samples" if isinstance(manifest, PlaceManifest) else "tiles"
    with _progress("files") as progress:
        checked = progress.track(manifest.verify(), total=num_files, description="checking files")
        wrong = [f"{manifest.folder.where(entry.name)} {fault}" for entry, fault in checked if fault is not None]
    is_local = isinstance(manifest.folder, LocalFolder)
    if is_local:  # elsewhere the checksums of the files have to do
        with _progress("shards") as progress:
            tiles = progress.track(verify_tiles(manifest), total=num_shards, description=f"checking {what}")
            wrong += [f"{manifest.folder.where(name)}: {fault}" for name, faults in tiles for fault in faults]
    print_remote([config.folder], config.remote)
    if wrong:
        lines = [f"{config.folder} is damaged, {len(wrong)} faults:", *wrong[:_NUM_LISTED]]
        if len(wrong) > _NUM_LISTED:
            lines.append(f"and {len(wrong) - _NUM_LISTED} more")
        raise ShardError("\n  ".join(lines))
    too = f", and all {num_samples:,} {what} are what the index says" if num_samples and is_local else ""
    console.print(f"{config.folder}: all {num_files} files are as they were written{too}", soft_wrap=True)


def _progress(unit: str) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _describe(manifest: Manifest) -> None:
    """Prints what a folder holds and what was left out."""
    if isinstance(manifest, PlaceManifest):
        describe_places(manifest)
        console.print(_groups_table({key: entry.groups for key, entry in manifest.grouped.modalities.items()}))
    else:
        console.print(_tiles_table(manifest))
        console.print(_groups_table({key: entry.groups for key, entry in manifest.modalities.items()}))
    for key, scenes in manifest.scenes.items():
        if synthetic := sum(scene.synthetic for scene in scenes):
            console.print(f"{key}: {synthetic} of {len(scenes)} scenes are synthetic")
    for key, entry in manifest.modalities.items():
        if entry.codec != "raw":
            console.print(f"{key}: pixels are coded without loss, {entry.codec}")
        if entry.dropped:
            console.print(f"{key}: dropped {sum(entry.dropped.values()):,} of {entry.candidates:,} windows")
            for reason in filter(entry.dropped.__contains__, REASONS):
                console.print(f"  {entry.dropped[reason]:,} {reason}: {REASONS[reason]}")
    print_files("refused", manifest.refused)
    print_files("quarantined (broken inside; none of their tiles is in a shard)", manifest.quarantined)


def _tiles_table(manifest: Manifest) -> Table:
    """Of each modality: scenes, shards, and the account of every window."""
    table = _table("modality", title=str(manifest.folder))
    for column in ("tile", "scenes", "windows", "dropped", *SPLITS, "shards", "size"):
        table.add_column(column, justify="right")
    for key, entry in manifest.modalities.items():
        shards = [shard for split in entry.splits.values() for shard in split.shards]
        counts = {split: entry.splits[split].num_samples if split in entry.splits else 0 for split in SPLITS}
        numbers = (len(entry.scenes), entry.candidates, sum(entry.dropped.values()), *counts.values(), len(shards))
        size = decimal(sum(shard.bytes for shard in shards))
        table.add_row(key, str(entry.tile), *(f"{number:,}" for number in numbers), size)
    return table


def _groups_table(groups: Mapping[str, Sequence[GroupEntry]]) -> Table:
    """Of each group: what its numbers are."""
    table = _table("modality", "numbers", title="groups of tiles that share their statistics")
    for split in SPLITS:
        table.add_column(split, justify="right")
    table.add_column("mean of each channel")
    for key, entries in groups.items():
        for found in entries:
            channels = (format(channel.mean, ".3g") for channel in found.group.channels if channel is not None)
            counts = (f"{found.tiles.get(split, 0):,}" for split in SPLITS)
            table.add_row(key, escape(str(found.group)), *counts, " ".join(channels))
    return table


def _table(*columns: str, title: str) -> Table:
    return Table(*columns, title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
