"""How far long work is: a bar on a terminal, a line now and then in a log."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ringmoe.cli.console import console
from ringmoe.data.rounds import BuildProgress

_LINE_EVERY = 30.0  # seconds


class _Bar:
    """A bar with words behind it, and a line of them now and then where there is no terminal; a context manager."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[words]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Self:
        """The bar itself."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last state on the screen."""
        self._bar.stop()

    def _show(self, task: TaskID, what: str, words: str, done: float, total: float) -> None:
        self._bar.update(task, completed=done, total=total, words=words, visible=True)
        now = time.monotonic()
        if not console.is_terminal and (now - self._said >= _LINE_EVERY or done >= total):
            console.print(f"{what}: {words}", highlight=False, soft_wrap=True)
            self._said = now


class BuildBar(_Bar):
    """Shows windows, rate, remaining time and quarantined scenes; called with every advance."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        super().__init__()
        self._task = self._bar.add_task("building", total=None, visible=False, words="")
        self._total = -1
        self._first = 0  # windows that were done when the clock was started

    def __call__(self, progress: BuildProgress) -> None:
        """Shows how far the build is."""
        now = time.monotonic()
        if progress.total != self._total or progress.done < self._first:
            self._total, self._first, self._begun = progress.total, progress.done, now
        words = in_words(progress, progress.done - self._first, now - self._begun)
        self._show(self._task, "building", words, progress.done, progress.total)


def in_words(progress: BuildProgress, built: int, seconds: float) -> str:
    """``1,024 of 4,096 windows, 512/s, 0:00:06 left, 1 scene quarantined``.

    Args:
        progress: How far the build is.
        built: Windows of them that were built in ``seconds``; rate and remaining time follow from these.
        seconds: Time since the first of these was begun.
    """
    words = [f"{progress.done:,} of {progress.total:,} windows"]
    if built > 0 and seconds > 0:
        rate = built / seconds
        words.append(f"{rate:,.0f}/s")
        if progress.done < progress.total:
            words.append(f"{_clock((progress.total - progress.done) / rate)} left")
    if progress.quarantined:
        words.append(f"{progress.quarantined} {'scene' if progress.quarantined == 1 else 'scenes'} quarantined")
    return ", ".join(words)


class StageBar(_Bar):
    """Shows share done and remaining time of work in stages; called with every advance."""

    def __init__(self) -> None:
        """Shows nothing yet."""
        super().__init__()
        self._tasks: dict[str, TaskID] = {}
        self._first = 0.0  # what was done when the stage was begun

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Shows how far a stage is."""
        now = time.monotonic()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, words="")
            self._first, self._begun = done, now
        words = f"{done / total:.0%}"
        if self._first < done < total:
            words += f", {_clock((now - self._begun) * (total - done) / (done - self._first))} left"
        elif done >= total:
            words += f" in {_clock(now - self._begun)}"
        self._show(self._tasks[stage], stage, words, done, total)


def _clock(seconds: float) -> str:
    """``1:02:03``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
