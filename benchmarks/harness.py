"""What all benchmarks share: contestants that take turns, medians with their spread, and claims that are met or not.

A family of claims is a module with ``FAMILY``, its title, and ``claims()``, which yields them one by one as they are
measured. Everything is measured in the same run and in turns (A B A B), after turns that do not count, so that
whatever else happens on the machine happens to all. A ratio is taken within each turn; its median and quartiles are
what is reported.

What trains has a process of its own (``Seats``), as in a run. In one process, the blocks that one contestant frees are
cut up by the next, and whoever needs the largest ones pays for fresh pages in every step.
"""

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from ringmoe.distributed import launch

CONSOLE = Console(width=140)
T = TypeVar("T")
Way = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure of ours beside a peer's.

    Attributes:
        name: What is over what: ``ours / limit``, ``DeepSpeed / ours``.
        setting: What was computed: type, sizes.
        ours: Our figure, in ``unit``.
        peer: The peer's, in ``unit``.
        unit: Unit of both.
        ratio: What the target is about.
        spread: Lower and upper quartile of the ratio over the turns; twice the ratio where there is one value only.
        target: ``<= x`` or ``>= x``; empty for a figure that is reported without one.
        met: Whether the ratio is what the target asks for; None without a target.
    """

    name: str
    setting: str
    ours: float
    peer: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    target: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing without a target."""
        return {True: "met", False: "missed", None: ""}[self.met]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of something goes.

    Attributes:
        name: Of what.
        setting: Type, sizes.
        shares: Part of the work to its share of the time; they add up to 1.
    """

    name: str
    setting: str
    shares: dict[str, float]


Found = Claim | Profile


def claim(
    name: str, setting: str, ours: Sequence[float], peer: Sequence[float], target: str = "", *, unit: str = "s"
) -> Claim:
    """The claim about two contestants that took turns.

    Args:
        name: ``peer / ours`` or ``ours / peer``: with "ours" first the ratio is ours over the peer's.
        setting: What was computed.
        ours: Our figure of every turn, in ``unit``.
        peer: The peer's.
        target: ``<= x``, ``>= x``, or nothing.
        unit: Unit of both.
    """
    pairs = zip(ours, peer, strict=True)
    ratios = [mine / theirs if name.startswith("ours") else theirs / mine for mine, theirs in pairs]
    low, high = (quantiles(ratios, n=4)[0], quantiles(ratios, n=4)[2]) if len(ratios) > 1 else (ratios[0], ratios[0])
    ratio = median(ratios)
    return Claim(
        name=name,
        setting=setting,
        ours=median(ours),
        peer=median(peer),
        unit=unit,
        ratio=ratio,
        spread=(low, high),
        target=target,
        met=is_met(ratio, target) if target else None,
    )


def is_met(ratio: float, target: str) -> bool:
    """Whether a ratio is what a target, ``<= x`` or ``>= x``, asks for."""
    sign, bound = target.split()
    return ratio <= float(bound) if sign == "<=" else ratio >= float(bound)


@dataclass(frozen=True)
class Contestant:
    """What takes part.

    Attributes:
        step: What is measured.
        draw: Is called with the number of each turn before it, and makes the turn's inputs.
    """

    step: Way
    draw: Callable[[int], None] = lambda turn: None

    def seconds(self, turn: int, now: Callable[[], float] = time.process_time) -> float:
        """Time of a turn by a clock, CPU time of the process unless another is given."""
        self.draw(turn)
        start = now()
        self.step()
        return now() - start


def take_turns(
    contestants: Mapping[str, Contestant],
    rounds: int,
    *,
    warm_up: int = 1,
    now: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn, all in this process.

    Args:
        contestants: By name.
        rounds: Turns that count.
        warm_up: Turns before them that do not.
        now: The clock, in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm_up + rounds):
        for name, contestant in contestants.items():
            spent = contestant.seconds(turn, now)
            if turn >= warm_up:
                seconds[name].append(spent)
    return seconds


class Seats:
    """A process for each contestant; they stay for the next setting. One works at a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._processes: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> "Seats":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take_turns(
        self, makers: Mapping[str, Callable[[], Contestant]], rounds: int, *, warm_up: int = 1
    ) -> dict[str, list[float]]:
        """CPU seconds of each contestant in each turn.

        Args:
            makers: Name to what makes the contestant in its process; to be pickled.
            rounds: Turns that count.
            warm_up: Turns before them that do not.
        """
        for name in makers:
            if name not in self._processes:
                alone = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), one_thread)
                self._processes[name] = self._stack.enter_context(alone)
        for made in [self._processes[name].submit(_sit, maker) for name, maker in makers.items()]:
            made.result()
        seconds: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(warm_up + rounds):
            for name in makers:
                spent = self._processes[name].submit(_turn, turn).result()
                if turn >= warm_up:
                    seconds[name].append(spent)
        for name in makers:
            self._processes[name].submit(_sit, None).result()
        return seconds


_seated: list[Contestant] = []  # the contestant of this process


def _sit(maker: Callable[[], Contestant] | None) -> None:
    """Takes the place of whoever was here; None leaves it empty."""
    _seated.clear()
    gc.collect()
    if maker is not None:
        _seated.append(maker())


def _turn(turn: int) -> float:
    return _seated[0].seconds(turn)


def one_thread(*, keep_memory: bool = True) -> None:
    """Settles this process as a rank of a run: one thread, and freed memory kept for the next step.

    Args:
        keep_memory: As in a run on CPUs, for all contestants; without it glibc gives large blocks back to the kernel.
    """
    torch.set_num_threads(1)
    if keep_memory:
        launch._keep_freed_memory()


def shares_of(step: Way, groups: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Shares of a step's time by kind of operator, on one thread.

    Args:
        step: Is run five times, the first unmeasured; of each operator the fastest time counts.
        groups: Kind to the names of its operators, without ``aten::``; all others are ``rest``.
    """
    step()
    fastest: dict[str, float] = {}
    for _ in range(4):
        with torch.autograd.profiler.profile() as profiler:
            step()
        for event in profiler.key_averages():
            spent = event.self_cpu_time_total
            fastest[event.key] = min(fastest.get(event.key, spent), spent)
    kind_of = {f"aten::{name}": kind for kind, names in groups.items() for name in names}
    seconds = dict.fromkeys([*groups, "rest"], 0.0)
    for operator, spent in fastest.items():
        seconds[kind_of.get(operator, "rest")] += spent
    whole = sum(seconds.values())
    return {kind: spent / whole for kind, spent in seconds.items()}


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with a bar that says how many are done."""
    yield from track(items, description=what, console=CONSOLE)


def show(found: Found) -> None:
    """Prints a figure as soon as it is known."""
    if isinstance(found, Profile):
        parts = ", ".join(f"{part} {share:.1%}" for part, share in found.shares.items())
        CONSOLE.print(f"  {found.name}, {found.setting}: {parts}", highlight=False)
        return
    low, high = found.spread
    figures = f"{found.ratio:.3g} ({low:.3g}-{high:.3g})"
    CONSOLE.print(
        f"  {found.name}, {found.setting}: {figures} [{found.target or 'no target'}] {found.verdict}",
        highlight=False,
        markup=False,
    )


def collect(found: Iterable[Found]) -> list[Found]:
    """Shows all figures as they come and returns them."""
    kept = []
    for each in found:
        show(each)
        kept.append(each)
    return kept


def to_json(family: str, found: Found) -> dict[str, Any]:
    """A figure as plain values."""
    return {"family": family, **asdict(found)}
