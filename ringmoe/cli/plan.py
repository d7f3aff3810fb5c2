"""``ringmoe plan``: whether a run fits, what its ranks exchange, how long a step may take; and what is fastest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ringmoe import modality as registry
from ringmoe.cli.console import console
from ringmoe.config import load_yaml
from ringmoe.errors import ConfigError
from ringmoe.moe.config import Recompute
from ringmoe.plan.cluster import Cluster, find_cluster
from ringmoe.plan.search import Plan, Workload, plan, search, shortage
from ringmoe.plan.setting import EngineFile, Setting, split_images
from ringmoe.plan.table import detail_table, overview_table, plain
from ringmoe.train.command import overlay
from ringmoe.train.optim import decays
from ringmoe.train.presets import preset
from ringmoe.train.run import RunConfig

_ENGINES = ("zero1", "zero2", "offload", "lean")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """A run, the devices, and what to say of them. What is left out is as the run has it.

    Attributes:
        preset: Run to start from, as for the launcher.
        config: YAML file of settings over it, as for the launcher.
        modalities: YAML file that declares further modalities.
        cluster: h200, h100, a100, or a YAML file that describes a cluster.
        devices: Numbers of devices to plan for.
        engine: Engine file, or lean.
        expert_parallel: Ranks that share the experts.
        micro_batch: Images of one rank's micro-batch.
        accumulation: Micro-batches of a step.
        dtype: Type of weights and activations.
        recompute: What the backward pass computes again.
        clip: Gradient norm to clip by, or 0: then the lean engine releases gradients as they come.
        total: Images of a step on all ranks: without --search the accumulation follows from it.
        search: Propose the fastest settings that fit, over expert-parallel sizes, engines, recomputation and
            micro-batches, at the same images of a step.
        engines: Engines that the search chooses from; lean is for one device only.
        show: Settings that the search lists for each number of devices.
        json: Print machine-readable JSON: bytes and seconds.
    """

    preset: str = "tiny"
    config: Path | None = None
    modalities: Path | None = None
    cluster: str = "h200"
    devices: tuple[int, ...] = (8,)
    engine: str | None = None
    expert_parallel: int | None = None
    micro_batch: int | None = None
    accumulation: int | None = None
    dtype: Literal["bf16", "fp32"] | None = None
    recompute: Recompute | None = None
    clip: float | None = None
    total: int | None = None
    search: bool = False
    engines: tuple[str, ...] = _ENGINES
    show: int = 1
    json: bool = False

    def __post_init__(self) -> None:
        """Checks the command line.

        Raises:
            ConfigError: A number is below 1, or an option means nothing beside the others.
        """
        if not self.devices or min(self.devices) < 1 or self.show < 1:
            raise ConfigError(f"--devices {self.devices} and --show {self.show}: expected numbers from 1")
        chosen = ("engine", "expert_parallel", "recompute")
        given = [name for name in chosen if getattr(self, name) is not None]
        if self.search and given:
            raise ConfigError(f"--search chooses {_options(chosen)} itself: leave out {_options(given)}, or --search")
        if not self.search and (self.engines != _ENGINES or self.show != 1):
            raise ConfigError("--engines and --show say what a search tries and lists: they go with --search")


def _options(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def run(config: PlanConfig) -> None:
    """Prints what the run needs on each number of devices, or what would be fastest there.

    Raises:
        ConfigError: Settings contradict each other, or nothing fits.
    """
    base, cluster = _run(config), find_cluster(config.cluster)
    weights = base.data.weights_without_shards()
    work = Workload(base.model, base.parallel.dtype, weights, decays, clips=base.optimiser.clip > 0)
    found = [
        _search(config, base, work, cluster, devices)
        if config.search
        else [plan(work, _setting(base, devices), cluster)]
        for devices in config.devices
    ]
    plans = [each for of_size in found for each in of_size[: config.show]]
    if config.json:
        print(json.dumps({"measured": False, "plans": [plain(each) for each in plans]}, indent=1))
        return
    _print(plans, [len(of_size) for of_size in found], config, cluster)


def _print(plans: list[Plan], num_fitting: list[int], config: PlanConfig, cluster: Cluster) -> None:
    if len(plans) == 1:
        console.print(detail_table(plans[0], cluster))
    else:
        console.print(overview_table(plans, cluster, title=f"{config.preset} on {cluster.name}"))
    if config.search:
        counts = ", ".join(f"{num} on {size}" for size, num in zip(config.devices, num_fitting, strict=True))
        console.print(f"settings that fit: {counts}", markup=False)
    for each in plans:
        if not each.fits:
            console.print(shortage(each, cluster), markup=False, soft_wrap=True)


def _run(config: PlanConfig) -> RunConfig:
    """The run that is planned: preset, file, options."""
    if config.modalities is not None:
        registry.load(config.modalities)
    base = preset(config.preset)
    if config.config is not None:
        base = overlay(base, load_yaml(config.config), where=str(config.config))
    options: dict[str, dict[str, Any]] = {
        "parallel": {
            "engine": config.engine,
            "expert_parallel": config.expert_parallel,
            "dtype": config.dtype,
            "recompute": config.recompute,
        },
        "batch": {"accumulation": config.accumulation, "total": config.total},
        "data": {"micro_batch": config.micro_batch},
        "optimiser": {"clip": config.clip},
    }
    given = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in options.items()
    }
    return overlay(base, given, where="options")


def _setting(run: RunConfig, devices: int) -> Setting:
    """The run as it is configured; its accumulation follows from the images of a step where these are given."""
    accumulation = run.batch.accumulation
    if run.batch.total is not None:
        accumulation, rest = divmod(run.batch.total, run.data.micro_batch * devices)
        if rest or not accumulation:
            raise ConfigError(
                f"{run.batch.total} images of a step are no multiple of micro-batch {run.data.micro_batch} x {devices} "
                "devices: change --micro-batch, --devices or --total, or --search for what goes"
            )
    return Setting(
        devices=devices,
        expert_parallel=run.parallel.expert_parallel,
        engine=EngineFile.read(run.parallel.engine, run.parallel.dtype),
        dtype=run.parallel.dtype,
        recompute=run.parallel.recompute,
        images=split_images(run.model, run.data.micro_batch, run.data.weights_without_shards()),
        accumulation=accumulation,
        clips=run.optimiser.clip > 0,
    )


def _search(config: PlanConfig, base: RunConfig, work: Workload, cluster: Cluster, devices: int) -> list[Plan]:
    engines = [EngineFile.read(name, work.dtype) for name in config.engines]
    total = base.batch.total or base.images_per_step(devices)
    return search(work, cluster, devices=devices, total=total, engines=engines)
