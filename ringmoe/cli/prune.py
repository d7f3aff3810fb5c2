"""``ringmoe-prune CHECKPOINT OUT --mode kc --modality opt``: from a trained model to a smaller one.

The plan is printed first. What is written is an ordinary checkpoint of a smaller config.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ringmoe.checkpoint.disk import free_bytes, readable_size
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.cli.console import console, guarded, print_remote
from ringmoe.cli.progress import StageBar
from ringmoe.compress.apply import source_config
from ringmoe.compress.calibration import calibrate
from ringmoe.compress.ep import PruningRule, RuleKind
from ringmoe.compress.kc import RankRule
from ringmoe.compress.plan import CompressionPlan, Mode, Options, make_plan
from ringmoe.compress.save import Resources, check, item_bytes, save
from ringmoe.compress.tables import ledger_table, merge_table, plan_table
from ringmoe.compress.work import folder_of
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import ConfigError
from ringmoe.models import preset
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage

USAGE_FILE = "usage.json"
_FLOAT32_BYTES = 4
_COLUMNS = (TextColumn("{task.description}"), BarColumn())


@dataclass(frozen=True)
class PruneConfig:
    """Makes a smaller model of a trained RingMoE: a sub-model, a pruned one, or a dense one with all experts merged.

    Attributes:
        checkpoint: Folder of a checkpoint, or of a run (its newest complete checkpoint is taken).
        out: Folder of the result; it must not exist.
        mode: extract: sub-model; ep: prune collaborative experts; ks, ka, kc: merge all experts by sum, mean, or SVD.
        modality: What the result shall understand: one or more of the model's modalities.
        keep: ep: share of the collaborative experts that stays in each layer, most used first (default 0.25).
        percentile: ep, instead of --keep: those at or above this percentile of the frequencies stay.
        threshold: ep, instead of --keep: those used by more than this share of the tokens stay.
        usage: ep: file of usage statistics (default: those that training stored in the checkpoint).
        shards: ep, instead of --usage: folders of shards, or their URLs, on whose tiles the usage is measured.
        remote: How those are read that are URLs.
        calibration_tiles: Tiles of each modality that --shards sends through the model.
        rank: kc: min(d1, d2) / N, or d2 / N as printed in the paper (which is full rank, and the same as ks), or a
            number.
        keep_decoders: Keep the decoders, for continued pre-training and for evaluation by reconstruction.
        dry_run: Print the plan and the sizes, and write nothing.
        preset: With --dry-run, in place of a checkpoint: the name of a model (ringmoe models lists them).
        plan: Also write the plan as JSON to this file.
        device: Where experts are merged; auto is a GPU where there is one.
        workers: Processes side by side (default: one for each core, as far as 4 GiB of memory carry them).
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = None
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    mode: Mode = field(kw_only=True)
    modality: tuple[str, ...] = ()
    keep: float | None = None
    percentile: float | None = None
    threshold: float | None = None
    usage: Path | None = None
    shards: tuple[Location, ...] = ()
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    calibration_tiles: int = 256
    rank: RankRule | int = "small-side"
    keep_decoders: bool = False
    dry_run: bool = False
    preset: str | None = None
    plan: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = None

    @property
    def options(self) -> Options:
        """What is asked of the plan.

        Raises:
            ConfigError: More than one rule is given, or a value is out of range.
        """
        rules: dict[RuleKind, float | None] = {
            "top": self.keep,
            "percentile": self.percentile,
            "threshold": self.threshold,
        }
        given = [PruningRule(kind, value) for kind, value in rules.items() if value is not None]
        if len(given) > 1:
            raise ConfigError("--keep, --percentile and --threshold exclude each other: give one")
        rule = given[0] if given else PruningRule()
        return Options(
            mode=self.mode, modalities=self.modality, rule=rule, rank=self.rank, keep_decoders=self.keep_decoders
        )


def run(config: PruneConfig) -> None:
    """Plans, shows the plan, and carries it out unless it is a dry run.

    Raises:
        RingMoEError: What was asked for cannot be done; only finished parts of the result are kept.
    """
    resources = Resources(device=config.device, workers=config.workers)
    if config.preset is not None:
        _plan(config, _preset(config, config.preset), None, _FLOAT32_BYTES)
        return
    if config.checkpoint is None or (config.out is None and not config.dry_run):
        raise ConfigError("give a checkpoint and a folder for the result: ringmoe-prune CHECKPOINT OUT --mode kc ...")
    reader = open_checkpoint(config.checkpoint)
    plan = _plan(config, source_config(reader), _usage(config, reader), item_bytes(reader))
    if config.dry_run or config.out is None:
        return
    _carry_out(plan, reader, config.out, resources)


def _preset(config: PruneConfig, name: str) -> RingMoEConfig:
    """The config of a model that is only planned for."""
    if not config.dry_run or config.checkpoint is not None:
        raise ConfigError("--preset stands for a model without weights: it goes with --dry-run and no checkpoint")
    model = preset(name)
    if not isinstance(model, RingMoEConfig):
        raise ConfigError(f"preset {name!r} is not a RingMoE: it has no experts of this kind")
    return model


def _usage(config: PruneConfig, reader: CheckpointReader) -> Usage | None:
    """Usage statistics: measured now, from the file that is named, or what training stored in the checkpoint."""
    if config.mode != "ep":
        return None
    if config.shards and config.usage is not None:
        raise ConfigError("--usage and --shards exclude each other: read usage statistics, or measure them")
    if config.shards:
        with Progress(*_COLUMNS, MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("measuring usage, tiles", total=None)
            usage = calibrate(
                reader,
                config.shards,
                remote=config.remote,
                modalities=config.modality,
                num_tiles=config.calibration_tiles,
                progress=lambda num_tiles: progress.advance(task, num_tiles),
            )
        print_remote(config.shards, config.remote)
        return usage
    if config.usage is not None:
        return Usage.load(config.usage)
    if USAGE_FILE in reader.manifest.files:
        return Usage.from_dict(reader.document(USAGE_FILE), where=str(reader.path / USAGE_FILE))
    return None


def _plan(config: PruneConfig, source: RingMoEConfig, usage: Usage | None, bytes_each: int) -> CompressionPlan:
    """Makes the plan, prints it, and writes it as JSON where that is asked for."""
    plan = make_plan(source, config.options, usage)
    console.print(plan_table(plan), ledger_table(plan, bytes_each))
    if plan.usage is not None:
        console.print(f"usage statistics: {plan.usage}", markup=False)
    if config.plan is not None:
        config.plan.write_text(json.dumps(plan.to_dict(), indent=1) + "\n", encoding="utf-8")
    return plan


def _carry_out(plan: CompressionPlan, reader: CheckpointReader, out: Path, resources: Resources) -> None:
    console.print(
        f"{readable_size(check(plan, reader, out))} are needed in {out.absolute().parent}, "
        f"{readable_size(free_bytes(out.parent))} are free; until it is complete the result is {folder_of(out).name}",
        markup=False,
        soft_wrap=True,
    )
    with StageBar() as bar:
        merges = save(plan, reader, out, bar, resources)
    if merges:
        console.print(merge_table(plan, merges))
    before, after = plan.ledger[0].total, plan.ledger[-1].total
    console.print(f"{out}: {before:,} -> {after:,} parameters ({after / before:.1%})", markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of ``ringmoe-prune``."""
    config = tyro.cli(PruneConfig, prog="ringmoe-prune", config=(tyro.conf.FlagCreatePairsOff,))
    sys.exit(guarded(lambda: run(config)))
