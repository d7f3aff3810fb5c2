"""Where the time of a training step goes: each part of the model, forward and backward, the optimiser, the data.

    python benchmarks/training_step.py [--preset small] [--micro-batch 16]

A run of one process and one thread, on shards of synthetic scenes, with the real engine and loader. The parts are those
of the code: calls are labelled at their borders, and a node of the graph at each border labels their backward, so that
every moment of the thread belongs to one part. Times are CPU times of the thread that trains, medians over steps;
reading ahead goes on in another thread and has a line of its own. Waiting for data is no CPU time: it is the share of
the wall clock that the run itself reports as ``data_wait``. With one process there is no exchange of tokens.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast
from unittest import mock

import harness
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ringmoe.clock import REST, Clock
from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig
from ringmoe.data.plan import BuildConfig
from ringmoe.distributed.engine import Engine
from ringmoe.distributed.launch import start, stop
from ringmoe.models.ringmoe import model as ringmoe_model
from ringmoe.moe.layer import RMoELayer
from ringmoe.raster.synth import SynthSettings, write_scenes
from ringmoe.raster.tiling import TilingConfig
from ringmoe.train.build import build_trainer
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.callbacks.expert_load import ExpertLoad
from ringmoe.train.callbacks.nan_guard import NanGuard
from ringmoe.train.callbacks.speed import Speed
from ringmoe.train.metrics import Row
from ringmoe.train.presets import preset
from ringmoe.train.run import Intervals, ParallelConfig, RunConfig
from ringmoe.train.trainer import Trainer

FAMILY = "Training step"
BACKWARD = ", backward"
_WARM_UP = 3  # steps that do not count


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        preset: The run, with its model.
        micro_batch: Images of a step.
        steps: Steps, of which the median counts.
        dtype: Type of weights and activations: fp32 or bf16.
    """

    preset: str = "tiny"
    micro_batch: int = 32
    steps: int = 12
    dtype: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """What was measured.

    Attributes:
        parts: CPU seconds of a step of each part of the thread that trains; ``<part>, backward`` is its backward pass.
        loader: CPU seconds of a step of the thread that reads ahead.
        data_waits: Share of each step's wall time in which training waits for data.
        images_per_second: Of wall time.
        mfu: Share of the peak that the model's operations use, of wall time.
    """

    parts: dict[str, float]
    loader: float
    data_waits: tuple[float, ...]
    images_per_second: float
    mfu: float

    @property
    def seconds(self) -> float:
        """CPU seconds of a step of the thread that trains."""
        return sum(self.parts.values())


class Labels:
    """Says of calls, and of their backward passes, which part of the step they are.

    Args:
        clock: Is told.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.before: list[str] = []  # parts whose backward was interrupted by that of another

    def call(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time belongs to ``part``, and so does its backward pass."""

        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.clock.during(part):
                args = self._through(_Begin, part, args)
                return self._through(_End, part, function(*args, **kwargs))

        return labelled

    def plain(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time belongs to ``part``."""

        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.clock.during(part):
                return function(*args, **kwargs)

        return labelled

    def _through(self, border: type[torch.autograd.Function], part: str, value: Any) -> Any:
        """The same value, with all its tensors that have a gradient led through one node of the graph."""
        tensors: list[Tensor] = []

        def take(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        _mapped(value, take)
        if not tensors:
            return value
        led = iter(border.apply(self, part, *tensors))
        return _mapped(value, lambda _: next(led))


class _Begin(torch.autograd.Function):
    """Where a part's forward begins, its backward ends."""

    @staticmethod
    def forward(ctx: Any, labels: Labels, part: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.labels = labels
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        ctx.labels.clock.turn(ctx.labels.before.pop())
        return None, None, *grads


class _End(torch.autograd.Function):
    """Where a part's forward ends, its backward begins."""

    @staticmethod
    def forward(ctx: Any, labels: Labels, part: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.labels, ctx.part = labels, part
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        ctx.labels.before.append(ctx.labels.clock.turn(ctx.part + BACKWARD))
        return None, None, *grads


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with its tensors that have a gradient changed, also those in tuples and dataclasses."""
    if isinstance(value, Tensor):
        return change(value) if value.requires_grad else value
    if isinstance(value, tuple):
        changed = [_mapped(item, change) for item in value]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _mapped(getattr(value, each.name), change) for each in fields(value)})
    return value


def borders(trainer: Trainer, labels: Labels) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Every call that is labelled: its owner, its name, and what takes its place."""

    def of(part: str, owners: Iterable[Any], *names: str, label: Any = labels.call) -> Iterator[Any]:
        for owner in owners:
            for name in names or ("forward",):
                yield owner, name, label(part, getattr(owner, name))

    model, inner = trainer.model, cast(Engine, trainer.engine)._inner
    layers = [layer for layer in model.modules() if isinstance(layer, RMoELayer)]
    yield from of("embedding", [model], "_embed")
    yield from of("attention", [block.attention for block in model.blocks])
    yield from of("norms", [norm for block in model.blocks for norm in (block.norm1, block.norm2)] + [model.norm])
    yield from of("merging", model.merges)
    yield from of("router", [layer.router for layer in layers if layer.router is not None])
    yield from of("router", [model], "_noise_keys")
    yield from of("dispatch", [layer.dispatcher for layer in layers], "dispatch")
    yield from of("experts", [layer.experts for layer in layers if layer.experts is not None])
    yield from of("shared expert", [layer.shared for layer in layers if layer.shared is not None])
    yield from of("combine", [layer.dispatcher for layer in layers], "give_back", "combine")
    yield from of("decoder", model.decoders.values())
    yield from of("masking and target", [ringmoe_model], "draw_mask", "target")
    yield from of("loss", [ringmoe_model], "masked_error", "balance")
    yield from of("rest of the forward", [trainer.engine], "forward", label=labels.plain)
    yield from of("rest of the backward", [torch.autograd], "backward", label=labels.plain)
    yield from of("AdamW", [inner.basic_optimizer], "step", label=labels.plain)
    gradients = ("reenter_backward_if_needed", "process_gradients", "update_hook_state_and_maybe_run_epilogue")
    yield from of("DeepSpeed, gradients", [inner.optimizer], *gradients, label=labels.plain)
    yield from of("DeepSpeed, backward pass", [trainer.engine], "backward", label=labels.plain)
    yield from of("DeepSpeed, step", [trainer.engine], "step", label=labels.plain)


class Watch(Callback):
    """Reads the clock of the parts after every step, and keeps what the run says of itself.

    Args:
        clock: The clock of the parts.
    """

    def __init__(self, clock: Clock) -> None:
        self.rows: list[Row] = []
        self.parts: list[dict[str, float]] = []
        self.process: list[float] = []
        self._clock = clock

    def before_step(self, trainer: Trainer) -> None:
        """Starts with the step."""
        self._process = time.process_time()
        self._clock.start()

    def on_rows(self, trainer: Trainer, rows: Sequence[Row]) -> None:
        """Stops when the step has been logged."""
        self.parts.append(self._clock.stop())
        self.process.append(time.process_time() - self._process)
        self.rows += rows


def measure(settings: Settings) -> StepTimes:
    """Trains a few steps and takes their time apart."""
    with tempfile.TemporaryDirectory() as folder, closing(build_trainer(run_of(settings, Path(folder)), start())) as it:
        torch.set_num_threads(1)
        labels = Labels(Clock(time.thread_time))
        watch = Watch(labels.clock)
        it.callbacks = [call for call in it.callbacks if isinstance(call, NanGuard | Speed | ExpertLoad)] + [watch]
        it.save = it.say = lambda *_: None  # type: ignore[method-assign, assignment]
        with ExitStack() as stack:
            for owner, name, labelled in borders(it, labels):
                stack.enter_context(mock.patch.object(owner, name, labelled))
            it.fit()
    stop()
    steps = slice(_WARM_UP, None)
    rows, parts = watch.rows[steps], watch.parts[steps]
    of_loader = [process - sum(of_step.values()) for process, of_step in zip(watch.process[steps], parts, strict=True)]
    middle = partial(_median, [row.scalars for row in rows])
    return StepTimes(
        parts={part: _median(parts, part) for part in parts[0]},
        loader=median(of_loader),
        data_waits=tuple(row.scalars["data_wait"] for row in rows),
        images_per_second=middle("images_per_second"),
        mfu=middle("mfu"),
    )


def run_of(settings: Settings, folder: Path) -> RunConfig:
    """The run, with shards of synthetic scenes in ``folder``."""
    base = preset(settings.preset)
    side = base.model.image_size
    list(write_scenes(folder / "scenes", SynthSettings(seed=0, scenes=2, size=max(4 * side, 256))))
    tiling = TilingConfig(tile=side, stride=side // 2, holdout=0.25)
    shards = build([folder / "scenes"], folder / "shards", BuildConfig(tiling=tiling)).manifest.root
    num_steps = _WARM_UP + settings.steps
    return replace(
        base,
        output=folder / "run",
        data=DataConfig(shards=(shards,), micro_batch=settings.micro_batch),
        schedule=replace(base.schedule, steps=num_steps, warmup=1),
        parallel=ParallelConfig(dtype="bf16" if settings.dtype == "bf16" else "fp32"),
        every=Intervals(log=1, checkpoint=num_steps + 1, evaluation=num_steps + 1, pictures=num_steps + 1),
    )


def _median(rows: Sequence[dict[str, float]], name: str) -> float:
    return median(row.get(name, 0.0) for row in rows)


def by_part(profile: StepTimes) -> dict[str, tuple[float, float | None, float]]:
    """Part to CPU seconds of its forward, of its backward where it has one, and of both, the costliest first."""
    parts = {}
    for name in {name.removesuffix(BACKWARD) for name in profile.parts}:
        forward, backward = profile.parts.get(name, 0.0), profile.parts.get(name + BACKWARD)
        parts["loop, metrics, logging" if name == REST else name] = forward, backward, forward + (backward or 0.0)
    return dict(sorted(parts.items(), key=lambda part: -part[1][2]))


def table_of(settings: Settings, profile: StepTimes) -> Table:
    """A line for each part, the costliest first."""
    title = f"a step of {settings.preset}, {settings.micro_batch} images, {settings.dtype}, one thread, CPU time"
    table = Table("part", title=title)
    for column in ("forward ms", "backward ms", "both ms", "of the step"):
        table.add_column(column, justify="right")
    for name, (forward, backward, both) in by_part(profile).items():
        halves = ("", "") if backward is None else (f"{1e3 * forward:.1f}", f"{1e3 * backward:.1f}")
        table.add_row(name, *halves, f"{1e3 * both:.1f}", f"{both / profile.seconds:.1%}")
    table.add_section()
    table.add_row("all", "", "", f"{1e3 * profile.seconds:.1f}", "100.0%")
    table.add_row(
        "reading ahead, a thread",
        "",
        "",
        f"{1e3 * profile.loader:.1f}",
        f"{profile.loader / profile.seconds:.1%}",
    )
    return table


def claims() -> Iterator[harness.Found]:
    """All claims of the family."""
    settings = Settings()
    setting = f"{settings.preset}, {settings.micro_batch} images, {settings.dtype}"
    profile = measure(settings)
    waits = profile.data_waits
    yield harness.claim("ours, waiting for data / step", setting, waits, [1.0] * len(waits), "<= 0.01", unit="steps")
    shares = {name: seconds / profile.seconds for name, (_, _, seconds) in by_part(profile).items()}
    yield harness.Profile(name="a training step", setting=setting, shares=shares)


def main(settings: Settings) -> None:
    """Measures and prints."""
    profile = measure(settings)
    console = Console()
    console.print(table_of(settings, profile))
    console.print(
        f"of the wall clock: waiting for data {median(profile.data_waits):.2%} of a step, "
        f"{profile.images_per_second:.1f} images/s, MFU {profile.mfu:.1%}"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
