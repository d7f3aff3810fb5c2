"""One RMoE layer whose experts are spread over two ranks, beside two ranks that hold all experts each.

    python benchmarks/expert_parallel.py            # the claims
    python benchmarks/expert_parallel.py --picture docs/images/exchange.svg

Two processes (gloo) on a core and a thread each; both layers live in the same pair of processes, have the same weights
and get the same tokens, and take turns. A step, forward and backward, takes as long as the slower rank's wall clock
says. Gradients are averaged in neither; that would cost the ranks that hold all experts more.

The picture is a step of rank 0: what its thread does, and from when to when rows are under way. A node of the graph at
each border labels the backward pass; the end of an exchange is when its last row was there.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import tyro
from contestants import TYPES, Cell
from harness import Contestant, Found, claim, collect, progress, take_turns
from torch import Tensor
from training_step import Labels

from ringmoe.clock import Clock
from ringmoe.distributed import launch
from ringmoe.moe import ExpertParallel, RMoELayer
from ringmoe.moe.dispatch import AllToAllDispatcher, _Exchange
from ringmoe.testing.ranks import run_ranks

# T tokens of a rank, D width

FAMILY = "Expert parallelism"
CELLS = [Cell("bf16", 448, 8192), Cell("fp32", 256, 1024)]
_ROUNDS = 7
_COLOURS = {
    "router": "#8da0cb",
    "dispatch": "#66c2a5",
    "shared expert": "#fc8d62",
    "routed experts": "#e5c494",
    "combine": "#a6d854",
    "waiting for rows": "#d7191c",
    "rest": "#d9d9d9",
}
Span = tuple[str, float, float]  # what, and its begin and end in seconds since the step began


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        picture: Where to draw a step of the first setting, instead of measuring the claims.
    """

    picture: Path | None = None


class Timeline(Clock):
    """A clock that also remembers when it turned."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: list[list[float]] = []

    def spans(self) -> list[Span]:
        """Every part with its begin and end, since ``start``."""
        ends = [*(began for _, began in self._marks[1:]), self._now()]
        zero = self._marks[0][1]
        return [(part, began - zero, end - zero) for (part, began), end in zip(self._marks, ends, strict=True)]

    def begins(self, exchange: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same start of an exchange, whose begin and end are remembered."""

        def begin(way: _Exchange, *args: Any) -> Tensor:
            span = [time.perf_counter()]
            self.exchanges.append(span)
            landing = exchange(way, *args)
            assert way._under_way is not None
            way._under_way[0].get_future().add_done_callback(lambda _: span.append(time.perf_counter()))
            return landing

        return begin


class Pair:
    """Both layers on this rank, and their tokens.

    Args:
        cell: The setting, for each rank.
    """

    def __init__(self, cell: Cell) -> None:
        rank = dist.get_rank()
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
        torch.set_num_threads(1)
        launch._keep_freed_memory()
        self.cell, self.rank = cell, rank
        parallel = ExpertParallel(size=dist.get_world_size(), rank=rank, group=dist.group.WORLD)
        self.whole, self.spread = (RMoELayer(cell.config, 0, each) for each in (ExpertParallel(), parallel))
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.whole.named_parameters():
                parameter.normal_(std=0.02)
                routed = name.startswith("experts.")
                self.spread.get_parameter(name).copy_(parameter[rank :: parallel.size] if routed else parameter)
        self.whole, self.spread = (layer.to(TYPES[cell.dtype]) for layer in (self.whole, self.spread))
        self.draw(0)

    def draw(self, turn: int) -> None:
        """New tokens for both layers, others on each rank."""
        seed = dist.get_world_size() * turn + self.rank
        generator = torch.Generator().manual_seed(seed)
        self.x_TD = torch.randn(self.cell.tokens, self.cell.dim, generator=generator).to(TYPES[self.cell.dtype])
        self.keys_T = torch.arange(self.cell.tokens) + seed * self.cell.tokens
        dist.barrier()

    def step(self, layer: RMoELayer) -> Tensor:
        """Forward and backward; returns when all ranks are done."""
        layer.zero_grad(set_to_none=True)
        y_TD: Tensor = layer(self.x_TD.detach().requires_grad_(), self.cell.sizes, self.keys_T)[0]
        torch.autograd.backward(y_TD, self.x_TD)
        dist.barrier()
        return y_TD.detach()


def times(cell: Cell) -> dict[str, list[float]]:
    """Seconds of both layers in every turn, on a rank.

    Raises:
        RuntimeError: The two layers compute different things.
    """
    pair = Pair(cell)
    whole_TD, spread_TD = pair.step(pair.whole).float(), pair.step(pair.spread).float()
    if not torch.allclose(whole_TD, spread_TD, rtol=2e-2, atol=2e-2):
        raise RuntimeError(f"{cell}: experts on two ranks compute something else than on one")
    ways = {"EP 1": pair.whole, "EP 2": pair.spread}
    contestants = {name: Contestant(partial(pair.step, layer), pair.draw) for name, layer in ways.items()}
    return take_turns(contestants, _ROUNDS, now=time.perf_counter)


def timeline(cell: Cell) -> tuple[list[Span], list[Span]]:
    """What this rank's thread does in a step, and what is under way meanwhile."""
    pair, clock = Pair(cell), Timeline()
    labels, layer = Labels(clock), pair.spread
    assert isinstance(layer.dispatcher, AllToAllDispatcher)
    assert layer.router is not None
    assert layer.experts is not None
    assert layer.shared is not None
    parts = [
        ("router", layer.router, "forward"),
        ("dispatch", layer.dispatcher, "dispatch"),
        ("shared expert", layer.shared, "forward"),
        ("routed experts", layer.experts, "forward"),
        ("combine", layer.dispatcher, "give_back"),
        ("combine", layer.dispatcher, "combine"),
    ]
    for part, owner, name in parts:
        setattr(owner, name, labels.call(part, getattr(owner, name)))
    layer.dispatcher.parallel.clock = clock
    with mock.patch.object(_Exchange, "begin", clock.begins(_Exchange.begin)):
        for turn in range(3):  # the last one is drawn
            pair.draw(turn)
            clock.start()
            clock.exchanges.clear()
            pair.step(layer)
        zero, spans = clock._marks[0][1], clock.spans()
    under_way = [("under way", begin - zero, end - zero) for begin, end in clock.exchanges]
    return spans, under_way


def claims() -> Iterator[Found]:
    """All claims of the family."""
    for cell in progress(CELLS, FAMILY):
        ranks = run_ranks(times, 2, cell, timeout=600)
        slower = {way: [max(pair) for pair in zip(*(rank[way] for rank in ranks), strict=True)] for way in ranks[0]}
        yield claim("ours, EP 2 / EP 1", f"{cell}, for each rank", slower["EP 2"], slower["EP 1"], "<= 1.25")


def draw(path: Path, spans: list[Span], under_way: list[Span]) -> None:
    """The picture of a step."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(figsize=(11, 2.6), layout="constrained")
    names = {"exchange": "waiting for rows"}
    for part, begin, end in spans:
        part = part.removesuffix(", backward")
        colour = _COLOURS[names.get(part, part)]
        axes.barh(1, 1e3 * (end - begin), left=1e3 * begin, color=colour, height=0.8)
    for _, begin, end in under_way:
        axes.barh(0, 1e3 * (end - begin), left=1e3 * begin, color="#5e3c99", height=0.8)
    turned = next(begin for part, begin, _ in spans if part.endswith(", backward"))
    axes.axvline(1e3 * turned, color="black", linewidth=1)
    axes.text(1e3 * turned, 1.47, " backward", ha="left", va="bottom", fontsize=9)
    axes.text(1e3 * turned, 1.47, "forward ", ha="right", va="bottom", fontsize=9)
    axes.set_yticks([1, 0], ["thread", "rows under way"])
    axes.set_xlabel("ms")
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(
        handles=[Patch(color=colour, label=part) for part, colour in _COLOURS.items()],
        loc="outside upper center",
        ncols=len(_COLOURS),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path, metadata={"Date": None})


def main(settings: Settings) -> None:
    """Measures and prints, or draws."""
    if settings.picture is None:
        collect(claims())
    else:
        draw(settings.picture, *run_ranks(timeline, 2, CELLS[0], timeout=600)[0])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
