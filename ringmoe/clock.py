"""Where the time goes: one line of time in which every moment belongs to one part of the work.

Parts may lie in each other: the inner one takes its time out of the outer one, so that the seconds of all parts add up
to the whole. Who works says which part it is (``during``); who wants to know starts and stops the clock. Unless it
runs, ``during`` does nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from ringmoe.faults import point

REST = "rest"  # the part of all that nobody has named


class Clock:
    """The time of this process.

    Args:
        now: Gives the time in seconds; ``time.thread_time`` counts the work of the calling thread alone.
    """

    def __init__(self, now: Callable[[], Any] = time.perf_counter) -> None:
        self._now = now
        self._marks: list[tuple[str, Any]] = []  # a part, and when it began; empty while nobody listens

    @property
    def is_running(self) -> bool:
        """Whether somebody listens."""
        return bool(self._marks)

    def start(self) -> None:
        """Begins to listen; what was not read before is forgotten."""
        self._marks = [(REST, self._now())]

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Inside, time belongs to ``part``, and afterwards again to the part before."""
        before = self.turn(part)
        point(part)
        try:
            yield
        finally:
            self.turn(before)

    def turn(self, part: str) -> str:
        """From now on time belongs to ``part``; returns the part that it belonged to."""
        if not self._marks:
            return REST
        before, _ = self._marks[-1]
        self._marks.append((part, self._now()))
        return before

    def stop(self) -> dict[str, float]:
        """Ends listening.

        Returns:
            Seconds of each part since ``start``, with what no part claimed as ``rest``; nothing if it did not run.
        """
        if not self._marks:
            return {}
        parts = [part for part, _ in self._marks]
        times = [*(began for _, began in self._marks), self._now()]
        self._marks = []
        seconds: dict[str, float] = {}
        for part, passed in zip(parts, self._passed(times), strict=True):
            seconds[part] = seconds.get(part, 0.0) + passed
        return seconds

    def _passed(self, times: list[Any]) -> list[float]:
        """Seconds from each time to the next."""
        return [end - begin for begin, end in pairwise(times)]


class CudaClock(Clock):
    """The time of the current GPU stream: a part is what the stream did, or waited for, between its two marks.

    While it runs, the host waits for nothing; ``stop`` waits until the stream has come to the last mark. A wait of the
    host, for data perhaps, counts as far as it leaves the stream without work.
    """

    def __init__(self) -> None:
        super().__init__(_recorded)

    def _passed(self, times: list[Any]) -> list[float]:
        times[-1].synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(times)]


def clock_of(device: torch.device) -> Clock:
    """The clock of what is computed on a device."""
    return CudaClock() if device.type == "cuda" else Clock()


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
