"""What a person sees while it trains: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer


_MOST_DATA_WAIT = 0.01  # share of a step that may wait for data unmentioned


class ProgressLine(Callback):
    """Shows step, loss, speed, utilisation and remaining time on rank 0."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._began, self._first_step = 0.0, 0

    def start(self, trainer: "Trainer") -> None:
        """Starts the clock, and the bar where there is a terminal."""
        self._began, self._first_step = time.monotonic(), trainer.step
        if trainer.is_main and self._console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.add_task("", total=trainer.num_steps, completed=trainer.step)
            self._bar.start()

    def on_rows(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Moves the bar, or writes a line."""
        if not trainer.is_main:
            return
        text = describe(rows)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.step, description=text)
            return
        done, left = trainer.step - self._first_step, trainer.num_steps - trainer.step
        seconds = (time.monotonic() - self._began) / max(done, 1) * left
        self._console.print(f"step {trainer.step}/{trainer.num_steps}  {text}  {_clock(seconds)} left", markup=False)

    def close(self) -> None:
        """Leaves the terminal in order."""
        if self._bar is not None:
            self._bar.stop()


def describe(rows: Sequence[Row]) -> str:
    """The mean loss with its parts, learning rate, speed and MFU of some steps, or the held-out results.

    A line of steps says how long they wait for data where that is over 1 %.
    """
    last = rows[-1].scalars
    if "loss" not in last:
        return f"held out, share of the visible mean's error: {_parts(last, 'val_ratio/', '.3g')}"
    mean = {name: sum(row.scalars[name] for row in rows) / len(rows) for name in last}
    speed = f"{mean['images_per_second']:.0f} images/s  MFU {mean['mfu']:.0%}"
    if mean["data_wait"] > _MOST_DATA_WAIT:
        speed += f"  data {mean['data_wait']:.0%}"
    return f"loss {mean['loss']:.4g} ({_parts(mean, 'loss/', '.2g')})  lr {last['lr']:.1e}  {speed}"


def _parts(scalars: Mapping[str, float], prefix: str, form: str) -> str:
    named = {name.removeprefix(prefix): value for name, value in scalars.items() if name.startswith(prefix)}
    return " ".join(f"{name} {value:{form}}" for name, value in named.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
