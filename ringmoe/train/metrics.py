"""Numbers of a run: recorded on the device where they are made, reduced over ranks together, read seldom.

A step only queues tensors: it neither waits for the device nor talks to other ranks. How a number is reduced is said
where it is recorded. A flush reduces everything at once, whatever the number of names and steps.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ringmoe.distributed.collectives import Reduction, reduce_metrics

# S steps since the last flush


@dataclass
class Row:
    """What was measured at one step, reduced over micro-batches and ranks.

    Attributes:
        step: Optimiser steps done, counted from 1.
        scalars: Plain numbers by name; ``loss/opt`` is the part ``opt`` of ``loss``.
        arrays: Larger ones, such as token counts (L, M, E).
    """

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class Metrics:
    """A queue of named tensors, reduced over micro-batches within a step and over ranks at a flush.

    Every name is recorded in every step, and by all ranks alike.
    """

    def __init__(self) -> None:
        self._reductions: dict[str, Reduction] = {}
        self._records: dict[str, list[Tensor]] = {}  # of the step in progress
        self._steps: list[int] = []
        self._queue: dict[str, list[Tensor]] = {}  # one value for each of the steps

    def record(self, name: str, value: Tensor, reduction: Reduction) -> None:
        """Queues a value of the step in progress; it stays on its device.

        Args:
            name: What it is, with ``/`` between a quantity and its part.
            value: A tensor of any shape.
            reduction: How the step's records of this name, and then the ranks' values, become one. ``last`` takes the
                last record and is for what is equal on all ranks.

        Raises:
            ValueError: The name was recorded before with another reduction (a fault of the caller).
        """
        self._declare(name, reduction)
        self._records.setdefault(name, []).append(value.detach())

    def record_all(self, name: str, value: float, reduction: Reduction) -> None:
        """Queues one value for all steps since the last flush; see ``record`` for the rest.

        Args:
            name: What it is; no step records it by itself.
            value: A number that the host knows already.
            reduction: How the ranks' values become one.
        """
        self._declare(name, reduction)
        self._queue[name] = [torch.tensor(value, dtype=torch.float64)] * len(self._steps)

    def end_step(self, step: int) -> None:
        """Closes the step in progress: its micro-batches become one value for each name."""
        self._steps.append(step)
        for name, values in self._records.items():
            self._queue.setdefault(name, []).append(_combine(torch.stack(values), self._reductions[name]))
        self._records = {}

    def flush(self) -> list[Row]:
        """The steps since the last flush, reduced over ranks; every rank gets them."""
        stacked = {name: (torch.stack(values), self._reductions[name]) for name, values in self._queue.items()}
        rows = [Row(step) for step in self._steps]
        for name, values_S in reduce_metrics(stacked).items():
            for row, value in zip(rows, values_S.numpy(), strict=True):
                _put(row, name, value)
        self._steps, self._queue = [], {}
        return rows

    def _declare(self, name: str, reduction: Reduction) -> None:
        known = self._reductions.setdefault(name, reduction)
        if known != reduction:
            raise ValueError(f"metric {name!r} was recorded with reduction {known!r}, now with {reduction!r}")


def _combine(values: Tensor, reduction: Reduction) -> Tensor:
    """The records of a step, along the first dimension, as one value."""
    match reduction:
        case "mean":
            return values.mean(0, dtype=torch.float64)
        case "sum":
            return values.sum(0, dtype=torch.float64)
        case "max":
            return values.amax(0)
        case "last":
            return values[-1]


def _put(row: Row, name: str, value: Any) -> None:
    if np.ndim(value) == 0:
        row.scalars[name] = float(value)
    else:
        row.arrays[name] = value
