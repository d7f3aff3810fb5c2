"""Measures what one CUDA card does: its matrix rate, the RMoE layer beside DeepSpeed's, and steps of the large models.

    python benchmarks/gpu.py                     # all of it, on the card that is there
    python benchmarks/gpu.py --parts rate layer  # some of it
    python benchmarks/gpu.py --device cpu        # tiny sizes, to see that it runs; the figures mean nothing

The layers take turns on the same tokens with the same weights; times are those of the card's own events. Operations are
those that the model needs, three times those of the forward pass: recomputation does not count. Steps train on random
images with the lean engine, blocks recomputed, no clipping. Figures are medians with their quartiles. What was measured
is in ``results/gpu.json`` after every part, so that nothing is lost if a later one fails.
"""

import gc
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Literal

import torch
import tyro
from contestants import Cell, DeepSpeedLayers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ringmoe.clock import clock_of
from ringmoe.distributed.engine_file import LEAN
from ringmoe.distributed.launch import World, start, stop
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.presets import ringmoe_6b, ringmoe_14b
from ringmoe.moe import ExpertParallel, RMoELayer
from ringmoe.testing.batches import random_batch
from ringmoe.train.build import build_model_and_engine
from ringmoe.train.optim import OptimiserConfig
from ringmoe.train.run import ParallelConfig, RunConfig

# N side of a square matrix, T tokens, D width

Part = Literal["rate", "layer", "step"]
PARTS: tuple[Part, ...] = ("rate", "layer", "step")
RESULTS = Path(__file__).parent / "results" / "gpu.json"
_WARM_UP = 3  # turns that do not count: kernels are compiled and memory is taken in them
_TINY = RingMoEConfig(image_size=32, depths=(1, 1), dims=(16, 32), head_dim=8, window=4, mask_unit=8)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        device: cuda, or cpu with tiny sizes.
        parts: The matrix rate (which the other parts always measure for themselves), the layer, the training steps.
        rounds: Turns of each layer, or products of each size.
        steps: Steps of each model, of which the first three do not count for its speed.
        images: Images of a step, shared out among the modalities.
        lr: Learning rate of the steps; there is no warm-up.
        output: Where the figures go.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    parts: tuple[Part, ...] = PARTS
    rounds: int = 9
    steps: int = 10
    images: int = 32
    lr: float = 2e-5
    output: Path = RESULTS


@dataclass(frozen=True)
class Sizes:
    """What a kind of device is measured with.

    Attributes:
        sides: Of square matrices.
        cells: Settings of the layer.
        models: Name to model.
    """

    sides: tuple[int, ...]
    cells: tuple[Cell, ...]
    models: Mapping[str, RingMoEConfig]


SIZES = {
    "cuda": Sizes(
        (4096, 8192, 16384),
        tuple(Cell("bf16", dim, 16384, mixed=mixed) for dim in (1792, 3584) for mixed in (False, True)),
        {"ringmoe-6b": ringmoe_6b(), "ringmoe-14b": ringmoe_14b()},
    ),
    "cpu": Sizes(
        (128,),
        tuple(Cell("bf16", 32, 256, mixed=mixed) for mixed in (False, True)),
        {"one modality": _TINY.for_modalities(("opt",)), "four modalities": _TINY},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        name: What it is.
        setting: Of what.
        value: The median, in ``unit``.
        quartiles: Lower and upper.
        unit: Its unit; a share has none.
        target: ``>= x`` or ``falls``; empty for a figure that is reported without one.
        met: Whether it is what the target asks for; None without one.
    """

    name: str
    setting: str
    value: float
    quartiles: tuple[float, float]
    unit: str = ""
    target: str = ""
    met: bool | None = None


def figure(
    name: str, setting: str, values: Sequence[float], unit: str = "", *, at_least: float | None = None
) -> Figure:
    """The figure of some turns.

    Args:
        name: What it is.
        setting: Of what.
        values: Of every turn.
        unit: Their unit.
        at_least: The target, if there is one.
    """
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    middle = median(values)
    target, met = ("", None) if at_least is None else (f">= {at_least:g}", middle >= at_least)
    return Figure(name=name, setting=setting, value=middle, quartiles=(low, high), unit=unit, target=target, met=met)


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way in each of ``rounds`` turns, by the device's own clock."""
    clock = clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_WARM_UP + rounds):
        for name, way in ways.items():
            clock.start()
            way()
            passed = sum(clock.stop().values())
            if turn >= _WARM_UP:
                seconds[name].append(passed)
    return seconds


def matrix_rates(sizes: Sizes, rounds: int, device: torch.device) -> Iterator[Figure]:
    """TFLOP/s of products of square bf16 matrices of each size; the best is what the rest is measured by."""
    for side in sizes.sides:
        a_NN, b_NN = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
        out_NN = torch.empty_like(a_NN)
        seconds = take_turns({"product": partial(torch.mm, a_NN, b_NN, out=out_NN)}, rounds, device)
        rates = [2 * side**3 / passed / 1e12 for passed in seconds["product"]]
        yield figure("matrix rate, bf16", f"{side} x {side}", rates, "TFLOP/s")


def layers(cell: Cell, rounds: int, device: torch.device, rate: float) -> Iterator[Figure]:
    """Our layer, forward and backward, as a share of the matrix rate, and DeepSpeed's layers beside it.

    Args:
        cell: The setting.
        rounds: Turns.
        device: Where.
        rate: The matrix rate in TFLOP/s.
    """
    x_TD = torch.randn(cell.tokens, cell.dim, device=device).bfloat16()
    keys_T = torch.arange(cell.tokens, device=device)
    modules: dict[str, nn.Module] = {"RMoE layer": (layer := _layer(cell, device))}
    if importlib.util.find_spec("deepspeed"):
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}  # or it would compile what is not used here
        deepspeed.init_distributed(verbose=False)
        with device:
            modules["DeepSpeed"] = DeepSpeedLayers(layer)
    for module in modules.values():
        module.to(torch.bfloat16)
    if "DeepSpeed" in modules:
        _check_agreement(cell, *(module(x_TD, cell.sizes, None)[0] for module in modules.values()))
    ways = {name: _step(module, cell, x_TD, keys_T) for name, module in modules.items()}
    memory = {name: _peak_memory(modules[name], way, device) for name, way in ways.items()}
    seconds = take_turns(ways, rounds, device)
    flops = 3 * 2 * 2 * 4 * cell.dim**2 * cell.tokens * (2 * cell.top_k + 1)
    for name, passed in seconds.items():
        target = 0.45 if name == "RMoE layer" else None
        yield figure(f"{name}, time", str(cell), [1e3 * one for one in passed], "ms")
        rates = [flops / one / 1e12 for one in passed]
        yield figure(f"{name}, share of the matrix rate", str(cell), [one / rate for one in rates], at_least=target)
        yield figure(f"{name}, peak memory", str(cell), [memory[name]], "GB")
    if "DeepSpeed" in seconds:
        ratios = [theirs / ours for theirs, ours in zip(seconds["DeepSpeed"], seconds["RMoE layer"], strict=True)]
        yield figure("times as fast as DeepSpeed", str(cell), ratios, at_least=1.5)


def training(name: str, model: RingMoEConfig, settings: Settings, world: World, rate: float) -> Iterator[Figure]:
    """Steps of a whole model on one batch.

    Args:
        name: The model's.
        model: The model.
        settings: How many steps, of how many images.
        world: This process.
        rate: The matrix rate in TFLOP/s.
    """
    each = max(settings.images // len(model.modalities), 1)
    images = dict.fromkeys(model.modalities, each)
    config = replace(
        RunConfig(model=model),
        optimiser=OptimiserConfig(lr=settings.lr, clip=0.0),
        parallel=ParallelConfig(engine=LEAN, recompute="blocks"),
    )
    _forget(world.device)
    _, engine = build_model_and_engine(config, world)
    batch = random_batch(model.modalities, each, model.image_size).to(world.device)
    seconds, losses, norms, clock = list[float](), [], [], clock_of(world.device)
    with closing(engine):
        for _ in range(settings.steps):
            clock.start()
            loss = engine.forward(batch).loss
            engine.backward(loss)
            engine.step()
            seconds.append(sum(clock.stop().values()))
            losses.append(float(loss.detach()))
            norms.append(float(engine.grad_norm))
    memory = torch.cuda.max_memory_allocated(world.device) / 1e9 if world.device.type == "cuda" else 0.0
    setting = f"{name}, {each * len(images)} images of {model.image_size} px"
    counted = seconds[min(_WARM_UP, len(seconds) - 1) :]
    flops = model.training_flops(images)
    yield figure("seconds of a step", setting, counted, "s")
    yield figure("images a second", setting, [each * len(images) / one for one in counted])
    yield figure("model FLOPs utilisation", setting, [flops / one / 1e12 / rate for one in counted])
    yield figure("peak memory", setting, [memory], "GB")
    falls = all(map(_is_finite, [*losses, *norms])) and losses[-1] < losses[0]
    for at, loss_value in (("first", losses[0]), ("last", losses[-1])):
        found = figure(f"loss, {at} of {len(losses)} steps", setting, [loss_value])
        yield replace(found, target="falls", met=falls) if at == "last" else found


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _layer(cell: Cell, device: torch.device) -> RMoELayer:
    """A layer in fp32, made where it is measured."""
    with torch.device("meta"):
        layer = RMoELayer(cell.config, 0, ExpertParallel())
    layer.to_empty(device=device)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return layer


def _step(module: nn.Module, cell: Cell, x_TD: Tensor, keys_T: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(module(x_TD.detach().requires_grad_(), cell.sizes, keys_T)[0], x_TD)

    return step


def _check_agreement(cell: Cell, ours_TD: Tensor, theirs_TD: Tensor) -> None:
    """Without noise both compute the same, but where two gates are nearly equal.

    Raises:
        RuntimeError: They do not: then there is nothing to compare.
    """
    off = (ours_TD.float() - theirs_TD.float()).norm() / theirs_TD.float().norm()
    if not off < 0.1:
        raise RuntimeError(f"{cell}: DeepSpeed's layers compute something else than ours, by {float(off):.1%}")


def _peak_memory(module: nn.Module, way: Callable[[], object], device: torch.device) -> float:
    """GB of weights, and of what a step takes beside them; 0 where there is no card."""
    if device.type != "cuda":
        return 0.0
    module.zero_grad(set_to_none=True)
    _forget(device)
    before = torch.cuda.memory_allocated(device)
    way()
    torch.cuda.synchronize(device)
    taken = torch.cuda.max_memory_allocated(device) - before
    module.zero_grad(set_to_none=True)
    return (sum(parameter.nbytes for parameter in module.parameters()) + taken) / 1e9


def _forget(device: torch.device) -> None:
    """Gives back what nothing refers to any more, and begins to look for a new peak of memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def measured(settings: Settings, world: World) -> Iterator[list[Figure]]:
    """The figures of each part, one piece after the other."""
    sizes, device = SIZES[settings.device], world.device
    rates = list(matrix_rates(sizes, settings.rounds, device))
    rate = max(found.value for found in rates)
    if "rate" in settings.parts:
        yield rates
    if "layer" in settings.parts:
        for cell in sizes.cells:
            yield list(layers(cell, settings.rounds, device, rate))
            _forget(device)
    if "step" in settings.parts:
        for name, model in sizes.models.items():
            yield list(training(name, model, settings, world, rate))
            _forget(device)


def machine(device: torch.device) -> dict[str, str]:
    """On what it was measured."""
    found = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    if device.type == "cuda":
        found |= {"card": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
    return found


def table_of(figures: Sequence[Figure]) -> Table:
    """A line for each figure, under its setting."""
    table = Table("figure", title="medians and quartiles; models with the lean engine, blocks recomputed")
    for heading in ("median", "quartiles", "target"):
        table.add_column(heading, justify="right")
    setting = ""
    for found in figures:
        if found.setting != setting:
            setting = found.setting
            table.add_section()
            table.add_row(setting, style="bold")
        low, high = found.quartiles
        verdict = {True: " met", False: " missed", None: ""}[found.met]
        spread = f"{low:.3g} to {high:.3g}" if low != high else ""
        value = f"{found.value:.3g} {found.unit}".rstrip()
        table.add_row(f"  {found.name}", value, spread, found.target + verdict)
    return table


def write(path: Path, figures: Sequence[Figure], device: torch.device) -> None:
    """Replaces what was measured by what is now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(device), "figures": [asdict(found) for found in figures]}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(settings: Settings) -> None:
    """Measures, prints and writes.

    Raises:
        ConfigError: There is no card, or figures of a CPU would take the place of a card's.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA card is to be seen here: run it where there is one, or try it with --device cpu")
    if settings.device == "cpu" and settings.output == RESULTS:
        raise ConfigError("--device cpu only tries the program: name another file with --output")
    os.environ["DS_ACCELERATOR"] = settings.device
    world, console, figures = start(), Console(width=140), list[Figure]()
    for found in measured(settings, world):
        figures += found
        write(settings.output, figures, world.device)
        console.print(f"measured: {found[0].setting}", markup=False, highlight=False)
    console.print(table_of(figures))
    stop()


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
