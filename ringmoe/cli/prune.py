"""``ringmoe-prune CHECKPOINT OUT --mode kc --modality opt``: from a trained model to a smaller one.

The plan is printed first. What is written is an ordinary checkpoint of a smaller config.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ringmoe.checkpoint.disk import free_bytes, readable_size, require_space
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.cli import report
from ringmoe.cli.console import console, guarded, print_remote
from ringmoe.cli.progress import StageBar
from ringmoe.compress import beyond, ep_loss
from ringmoe.compress.apply import source_config
from ringmoe.compress.calibration import Tiles, calibrate, load_whole, open_tiles
from ringmoe.compress.ep import PruningRule, RuleKind
from ringmoe.compress.ep_loss import LossIncrease
from ringmoe.compress.extensions import DEFAULT_MASKS, DEFAULT_TILES, Alignment, Choice, Extensions
from ringmoe.compress.kc import RankRule
from ringmoe.compress.memory import require_memory
from ringmoe.compress.plan import CompressionPlan, Mode, Options, make_plan
from ringmoe.compress.report import stored_usage
from ringmoe.compress.save import Device, Resources, check, check_source, item_bytes, needed_bytes, save
from ringmoe.compress.tables import ledger_table, merge_table, plan_table
from ringmoe.compress.work import folder_of
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import ConfigError
from ringmoe.models import preset
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage

_FLOAT32_BYTES = 4
_LEAST_SHARE = 1e-6  # of the experts: one
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
        usage: ep, --weigh-by-usage: file of usage statistics (default: those that training stored in the checkpoint).
        shards: Folders of shards, or their URLs: calibration tiles, on which usage is measured instead of read (ep,
            --weigh-by-usage), and everything else that says so.
        remote: How those are read that are URLs.
        calibration_tiles: Tiles of each modality that --shards sends through the model (default: 256).
        calibration_masks: How often each of them is shown under a mask too, besides once whole (default: 1); usage is
            measured on whole tiles alone.
        align: ks, ka, kc: bring the experts' hidden units into the shared one's order first, by their weights, or by
            their activations on calibration tiles.
        weigh_by_usage: ks, ka, kc: weigh each expert by how often tokens select it.
        whiten: kc: truncate for the least error of outputs on calibration tiles, not of weights.
        refit: ks, ka, kc: solve for W_2 and b_2 on calibration tiles, by least squares to the sparse layer's outputs.
        ridge: With --refit: weight of the squares of W_2, as a share of the hidden units' variance (default 0.001).
        sequential: With --refit, --whiten or --align activations: calibrate each layer on what the layers before it,
            merged already, hand it.
        heal: ep, ks, ka, kc: steps of distillation from the sparse model at the end, on the training tiles of --shards,
            all of them.
        choose_by: ep: keep the experts that are used most, or those that the masked error grows most without (on
            calibration tiles).
        rank: kc: min(d1, d2) / N, or d2 / N as printed in the paper (which is full rank, and the same as ks), or a
            number.
        keep_decoders: Keep the decoders, for continued pre-training and for evaluation by reconstruction.
        report: Also write OUT/report.html: one page with sizes, speed, routing and spectra, and, with --shards, with
            errors of layers and of reconstruction (ringmoe report does the same afterwards).
        dry_run: Print the plan and the sizes, and write nothing.
        preset: With --dry-run, in place of a checkpoint: the name of a model (ringmoe models lists them).
        plan: Also write the plan as JSON to this file.
        device: Where experts are merged (default: auto, a GPU where there is one).
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
    calibration_tiles: int | None = None
    calibration_masks: int | None = None
    align: Alignment | None = None
    weigh_by_usage: bool = False
    whiten: bool = False
    refit: bool = False
    ridge: float | None = None
    sequential: bool = False
    heal: int = 0
    choose_by: Choice = "frequency"
    rank: RankRule | int = "small-side"
    keep_decoders: bool = False
    report: bool = False
    dry_run: bool = False
    preset: str | None = None
    plan: Path | None = None
    device: Device | None = None
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
        options = Options(
            mode=self.mode,
            modalities=self.modality,
            rule=given[0] if given else PruningRule(),
            rank=self.rank,
            keep_decoders=self.keep_decoders,
            extensions=Extensions(
                align=self.align,
                weigh_by_usage=self.weigh_by_usage,
                whiten=self.whiten,
                refit=self.refit,
                ridge=self.ridge,
                sequential=self.sequential,
                heal=self.heal,
                choose_by=self.choose_by,
                tiles=DEFAULT_TILES if self.calibration_tiles is None else self.calibration_tiles,
                masks=DEFAULT_MASKS if self.calibration_masks is None else self.calibration_masks,
            ),
        )
        self._check_idle(options, ruled=bool(given))
        return options

    def _check_idle(self, options: Options, *, ruled: bool) -> None:
        """Refuses what would do nothing; extensions have refused theirs.

        Raises:
            ConfigError: An option has no effect in this mode.
        """
        needs_tiles = options.extensions.needs_tiles
        if ruled and self.mode != "ep":
            raise ConfigError(f"--keep, --percentile and --threshold do nothing in mode {self.mode}: nothing is pruned")
        if self.rank != "small-side" and self.mode != "kc":
            raise ConfigError(f"--rank does nothing in mode {self.mode}: it truncates nothing")
        if self.usage is not None and not (options.needs_usage or self.report):
            raise ConfigError(f"--usage does nothing here: mode {self.mode} is not decided by usage")
        if self.report and self.dry_run:
            raise ConfigError("--report does nothing with --dry-run: there is no result to look at; leave one out")
        if self.shards and not (options.needs_usage or needs_tiles or self.report):
            raise ConfigError(
                f"--shards does nothing here: mode {self.mode} measures nothing; leave it out, or add what shall be "
                "measured (--refit or --report, for example)"
            )
        if not options.extensions.is_plain and (self.workers, self.device) != (None, None):
            raise ConfigError(
                f"--device and --workers do nothing here: {options.extensions} goes layer by layer, in this process "
                "and on the CPU; leave them out"
            )
        measures_usage = options.needs_usage and self.usage is None and bool(self.shards)
        if self.calibration_tiles is not None and not (needs_tiles or measures_usage):
            raise ConfigError("--calibration-tiles does nothing here: nothing is measured on tiles; leave it out")
        if self.calibration_masks is not None and not needs_tiles:
            raise ConfigError("--calibration-masks does nothing here: nothing is shown under a mask; leave it out")
        if self.usage is not None and self.shards and not (needs_tiles or self.report):
            raise ConfigError("--usage and --shards exclude each other: read usage statistics, or measure them")


def run(config: PruneConfig) -> None:
    """Plans, shows the plan, and carries it out unless it is a dry run.

    Raises:
        RingMoEError: What was asked for cannot be done; only finished parts of the result are kept.
    """
    resources = Resources(device=config.device or "auto", workers=config.workers)
    if config.preset is not None:
        usage = Usage.load(config.usage) if config.usage is not None else None
        _plan(config, _preset(config, config.preset), _FLOAT32_BYTES, usage)
        return
    if config.checkpoint is None or (config.out is None and not config.dry_run):
        raise ConfigError("give a checkpoint and a folder for the result: ringmoe-prune CHECKPOINT OUT --mode kc ...")
    reader = open_checkpoint(config.checkpoint)
    source, options = source_config(reader), config.options
    with _tiles(config, reader) as tiles:
        if config.out is not None and not config.dry_run:
            _check_early(source, options, reader, config.out, tiles)
        scores = _usage(config, reader), _losses(options, reader, tiles)
        plan = _plan(config, source, item_bytes(reader), *scores, tiles.source if tiles else None)
        if config.dry_run or config.out is None:
            return
        _carry_out(plan, reader, config.out, tiles, resources)
    if config.report:
        result = CheckpointReader(config.out)
        report.write(reader, result, config.shards, remote=config.remote, usage=scores[0], device=resources.device)
    if tiles is not None or config.report:
        print_remote(config.shards, config.remote)


def _check_early(
    source: RingMoEConfig, options: Options, reader: CheckpointReader, out: Path, tiles: Tiles | None
) -> None:
    """Refuses before anything is measured, which may take hours, what would be refused after it.

    Raises:
        RingMoEError: The plan is impossible whatever is measured, ``OUT`` exists, the checkpoint lacks tensors, there
            are too few tokens, or not even the smallest result has room and memory.
    """
    check_source(source, reader, out)
    keys = options.modalities[:1] if options.mode == "ep" else options.modalities  # a union keeps no less than one
    rule = options.rule if options.rule.kind == "top" else PruningRule("top", _LEAST_SHARE)
    least = make_plan(source, replace(options, modalities=keys, rule=rule))
    beyond.require_enough(least, tiles)
    begun = folder_of(out), out.with_name(f"{out.name}.tmp")  # what lies there is room that is looked at later
    if not any(path.exists() for path in begun):
        require_space(out.parent, needed_bytes(least, reader))


@contextmanager
def _tiles(config: PruneConfig, reader: CheckpointReader) -> Iterator[Tiles | None]:
    """Calibration tiles, where the extensions need some and there are shards."""
    extensions = config.options.extensions
    if not (extensions.needs_tiles and config.shards):
        yield None
        return
    with open_tiles(
        reader, config.shards, remote=config.remote, modalities=config.modality, num_tiles=extensions.tiles
    ) as tiles:
        yield tiles


def _preset(config: PruneConfig, name: str) -> RingMoEConfig:
    """The config of a model that is only planned for."""
    if not config.dry_run or config.checkpoint is not None:
        raise ConfigError("--preset stands for a model without weights: it goes with --dry-run and no checkpoint")
    if config.shards:
        raise ConfigError("--shards does nothing with --preset: a model without weights measures nothing; give --usage")
    model = preset(name)
    if not isinstance(model, RingMoEConfig):
        raise ConfigError(f"preset {name!r} is not a RingMoE: it has no experts of this kind")
    return model


def _usage(config: PruneConfig, reader: CheckpointReader) -> Usage | None:
    """Usage statistics: measured now, from the file that is named, or what training stored in the checkpoint."""
    if not config.options.needs_usage:
        return Usage.load(config.usage) if config.usage is not None else None
    if config.shards and config.usage is None:
        with Progress(*_COLUMNS, MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("measuring usage, tiles", total=None)
            usage = calibrate(
                reader,
                config.shards,
                remote=config.remote,
                modalities=config.modality,
                num_tiles=config.options.extensions.tiles,
                progress=lambda num_tiles: progress.advance(task, num_tiles),
            )
        print_remote(config.shards, config.remote)
        return usage
    if config.usage is not None:
        return Usage.load(config.usage)
    return stored_usage(reader)


def _losses(options: Options, reader: CheckpointReader, tiles: Tiles | None) -> LossIncrease | None:
    """What each collaborative expert is worth, where experts are chosen by that and there are tiles."""
    if options.extensions.choose_by != "loss" or tiles is None:
        return None
    require_memory("choosing experts by loss", 4 * tiles.config.num_params())
    model = load_whole(tiles.config, reader)
    with Progress(*_COLUMNS, MofNCompleteColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("leaving out one expert after the other", total=ep_loss.num_passes(model))
        return ep_loss.measure(
            model,
            list(tiles.batches()),
            masks=options.extensions.masks,
            source=tiles.source,
            progress=lambda: progress.advance(task),
        )


def _plan(
    config: PruneConfig,
    source: RingMoEConfig,
    bytes_each: int,
    usage: Usage | None = None,
    losses: LossIncrease | None = None,
    calibration: str | None = None,
) -> CompressionPlan:
    """Makes the plan, prints it, and writes it as JSON where that is asked for."""
    plan = make_plan(source, config.options, usage, losses=losses, calibration=calibration)
    console.print(plan_table(plan), ledger_table(plan, bytes_each))
    if plan.usage is not None:
        name = "losses measured on" if losses else "usage statistics"
        console.print(f"{name}: {plan.usage}", markup=False, soft_wrap=True)
    if plan.options.extensions.needs_tiles:
        console.print(f"calibration: {plan.calibration or 'on tiles of --shards'}", markup=False, soft_wrap=True)
    if (num_bytes := beyond.needed_memory(plan)) > 0:
        console.print(f"about {readable_size(num_bytes)} of memory are needed", markup=False)
    if config.plan is not None:
        config.plan.write_text(json.dumps(plan.to_dict(), indent=1) + "\n", encoding="utf-8")
    return plan


def _carry_out(
    plan: CompressionPlan, reader: CheckpointReader, out: Path, tiles: Tiles | None, resources: Resources
) -> None:
    is_plain, healing = plan.options.extensions.is_plain, None
    plan.check_decided()
    console.print(
        f"{readable_size(check(plan, reader, out) if is_plain else needed_bytes(plan, reader))} are needed in "
        f"{out.absolute().parent}, {readable_size(free_bytes(out.parent))} are free; "
        + (
            f"until it is complete the result is {folder_of(out).name}"
            if is_plain
            else "an interruption leaves nothing: with what goes beyond the paper the same command begins anew"
        ),
        markup=False,
        soft_wrap=True,
    )
    with StageBar() as bar:
        if is_plain:
            merges = save(plan, reader, out, bar, resources)
        else:
            merges, healing = beyond.save(plan, reader, out, tiles, bar)
    if merges:
        console.print(merge_table(plan, merges))
    if healing is not None:
        console.print(
            f"distance to the sparse model's maps on the calibration tiles: {healing.before:.4f} before healing, "
            f"{healing.after:.4f} after",
            markup=False,
            soft_wrap=True,
        )
    before, after = plan.ledger[0].total, plan.ledger[-1].total
    console.print(f"{out}: {before:,} -> {after:,} parameters ({after / before:.1%})", markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of ``ringmoe-prune``."""
    config = tyro.cli(PruneConfig, prog="ringmoe-prune", config=(tyro.conf.FlagCreatePairsOff,))
    sys.exit(guarded(lambda: run(config)))
