"""The whole of a training run as typed settings: every component's own config, added up."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from ringmoe.data.loader import DataConfig
from ringmoe.distributed.engine_file import EngineConfig
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.config import Recompute
from ringmoe.train.optim import OptimiserConfig, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the work is spread and computed.

    Attributes:
        expert_parallel: Ranks that share the experts: 1, 2 or 4, a divisor of the world and of every expert family.
        engine: Engine file of DeepSpeed: its path, or the name of one in ``ds_configs``. Or ``lean``: one device and no
            DeepSpeed, weights without masters, moments in eight bits; what its gradients take follows from
            ``optimiser.clip`` and ``batch.accumulation``, see ``ringmoe.distributed.lean``.
        dtype: Type of weights and activations; gates, norms and losses are fp32 in either case, and so are DeepSpeed's
            master weights.
        recompute: What the backward pass computes again instead of finding it kept: nothing, the hidden values of the
            experts (most of the memory, a sixth of their time), or all activations inside the blocks.
    """

    expert_parallel: int = 1
    engine: str = "zero1"
    dtype: Literal["bf16", "fp32"] = "bf16"
    recompute: Recompute = "nothing"


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Images of an optimiser step; those of a micro-batch are ``data.micro_batch``.

    Attributes:
        accumulation: Micro-batches of one optimiser step on each rank.
        total: Images that all ranks together must come to in a step; None accepts what comes out.
    """

    accumulation: int = 1
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often something happens, in optimiser steps.

    Attributes:
        log: Metrics are read from the device and written.
        checkpoint: The run is saved (and at its end).
        evaluation: The held-out tiles are reconstructed (and at the end).
        pictures: Reconstructions and expert load are drawn (and at the end).
    """

    log: int = 10
    checkpoint: int = 1_000
    evaluation: int = 1_000
    pictures: int = 1_000

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: An interval is below 1.
        """
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"every.{name} is {value} steps; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How held-out tiles are judged.

    Attributes:
        tiles: Most tiles of each modality, spread evenly over the held-out ones.
        masks: Masks that each tile is reconstructed under; the error is their mean.
        batch: Tiles of one forward pass on each rank.
    """

    tiles: int = 512
    masks: int = 4
    batch: int = 32

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A number is below 1.
        """
        for name in (each.name for each in fields(EvaluationConfig)):  # not those that a subclass adds
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class NumbersConfig:
    """What happens when numbers go wrong.

    Attributes:
        skips: Steps in a row that are left out, weights and moments untouched, for a loss or gradient that is not
            finite; one more stops the run. 0 stops it at the first.
        spike: How far above the median of the last 128 losses one lies that spikes, in standard deviations of these,
            estimated by 1.4826 times their median absolute deviation; 0 looks for none.
        spike_steps: So many steps in a row that spike are a spike of the run, which is said.
        roll_backs: So often a run may go back to its newest checkpoint from before such a spike and pass over the data
            that it has read since; one spike more stops it. 0 never goes back, and stops at no spike.
    """

    skips: int = 3
    spike: float = 6.0
    spike_steps: int = 3
    roll_backs: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A number is too small, or the run is to go back where nothing looks for spikes.
        """
        for name, least in (("skips", 0), ("spike", 0), ("spike_steps", 1), ("roll_backs", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"numbers.{name} is {getattr(self, name)}; expected {least} or more")
        if self.roll_backs and not self.spike:
            raise ConfigError(
                f"numbers.roll_backs is {self.roll_backs}, but with numbers.spike 0 nothing looks for spikes to go "
                "back from: leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A pre-training run.

    Attributes:
        output: Folder of checkpoints, metrics, TensorBoard logs and pictures; starting again with it continues the run.
        start: Checkpoint, or run, whose weights are the first ones, for example what ringmoe-prune made with
            --keep-decoders; its model is the run's then. None draws them at random.
        seed: Fixes first weights, order of samples, crops, masks and gate noise.
        keep_last: The newest so many checkpoints stay.
        keep_every: And all whose step is a multiple of this, for ever; 0 for none.
        save_beside: Write checkpoints beside training, which then waits only while each rank copies its share of
            weights and moments (12 bytes for each parameter) into host memory, not until they are on the disk.
        hang_after: Seconds after which a step that does not end is taken for a hang, or ten times the step before if
            that is more, or all attempts at a tile that is fetched by URL: all ranks write their stacks to ``stacks``
            in ``output``, and the job ends. Between steps ten times that are allowed, and time to save. 0 waits for
            ever.
        model: Architecture, masking and objective.
        data: Shards and micro-batches.
        batch: Images of a step.
        optimiser: AdamW.
        schedule: Number of steps and learning rate.
        parallel: Experts, engine, precision.
        every: How often something is logged, saved, evaluated and drawn.
        evaluation: How held-out tiles are judged.
        numbers: What happens when loss or gradient go wrong.
    """

    output: Path = Path("runs/pretrain")
    start: Path | None = None
    seed: int = 0
    keep_last: int = 3
    keep_every: int = 0
    save_beside: bool = False
    hang_after: float = 120.0
    model: RingMoEConfig = field(default_factory=RingMoEConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    every: Intervals = field(default_factory=Intervals)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    numbers: NumbersConfig = field(default_factory=NumbersConfig)

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: One of them is out of range.
        """
        if self.keep_last < 1:
            raise ConfigError(f"keep_last is {self.keep_last} checkpoints; expected at least 1, the newest")
        if self.keep_every < 0:
            raise ConfigError(
                f"keep_every is {self.keep_every} steps; expected more, or 0 to keep the newest ones alone"
            )
        if self.hang_after < 0:
            raise ConfigError(f"hang_after is {self.hang_after} seconds; expected more, or 0 to wait for ever")

    def engine_config(self) -> EngineConfig:
        """What the engine needs to know of the run."""
        return EngineConfig(
            file=self.parallel.engine,
            dtype=self.parallel.dtype,
            micro_batch=self.data.micro_batch,
            accumulation=self.batch.accumulation,
            clip=self.optimiser.clip,
            lr=self.optimiser.lr,
            betas=self.optimiser.betas,
            eps=self.optimiser.eps,
        )

    def images_per_step(self, world: int) -> int:
        """Images of all modalities, micro-batches and ranks in one optimiser step."""
        return self.data.micro_batch * self.batch.accumulation * world
