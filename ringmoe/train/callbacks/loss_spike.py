"""A loss that jumps is noticed, and the run may go back to before it."""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from ringmoe.train.callbacks.base import Callback
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.run import NumbersConfig
    from ringmoe.train.trainer import Trainer

_WINDOW = 128  # losses that one is compared with; as for the steps that OLMo-core skips, of which half must be there
_NORMAL = 1.4826  # standard deviation over median absolute deviation, of a normal distribution
_LEAST = 1e-2  # share of the median that one standard deviation is taken to be at least


class LossSpike(Callback):
    """Compares the loss of every step with those before it; rows get ``loss_spike``, 1 where it lies too high, or 0.

    OLMo-core's ``SkipStepOptimizer`` skips steps whose loss lies six standard deviations above the mean of the last
    128. Here median and median absolute deviation stand for them, which the spike itself does not move.

    A run that were only repeated from a checkpoint would spike again at the same step, being a function of its data. So
    what was read since is passed over, as Chowdhery et al. did (PaLM, 2022, section 5.1): the trainer does it when it
    is asked to by ``wants_back``. The reduced losses are the same on all ranks, so all of them ask at the same step.

    Args:
        config: How high is too high, for how long, and how often the run may go back.
    """

    def __init__(self, config: "NumbersConfig") -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._in_row, self._first = 0, 0  # steps that spike, and the first of them
        self._began = 0  # the step at which a spike began that the run shall go back from

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Looks at the steps, says where a spike begins and ends, and has the run go back where it may."""
        if not self._config.spike:
            return
        for row in rows:
            self._look(trainer, row)
            if trainer.passed:
                row.scalars["roll_backs"] = len(trainer.passed)
        if not self._config.roll_backs:
            self._began = 0
        else:
            trainer.wants_back = self._began
            if (self._in_row or self._began) and not trainer.doubt:
                trainer.doubt = "its loss spikes"

    def state(self) -> dict[str, Any]:
        """The losses, and what they have come to."""
        return {"losses": list(self._losses), "in_row": self._in_row, "first": self._first, "began": self._began}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on comparing."""
        self._losses = deque(state.get("losses", ()), maxlen=_WINDOW)
        self._in_row, self._first, self._began = (state.get(name, 0) for name in ("in_row", "first", "began"))

    def _look(self, trainer: "Trainer", row: Row) -> None:
        loss, steps = row.scalars["loss"], self._config.spike_steps
        usual, limit = self._usual()
        is_high = loss > limit
        row.scalars["loss_spike"] = float(is_high)
        if not math.isfinite(loss):
            return  # the step was left out, or the run has ended: see NanGuard
        if is_high:
            self._first = self._first if self._in_row else row.step
            self._in_row += 1
            if self._in_row == steps:
                self._began = self._first
                parts = ", ".join(f"{n} {v:.3g}" for n, v in row.scalars.items() if n.startswith("loss/"))
                trainer.say(
                    f"LOSS SPIKE: since step {self._began} the loss is above {limit:.4g}, in step {row.step} it is "
                    f"{loss:.4g} ({parts}); of {len(self._losses)} before the median is {usual:.4g} (--numbers.spike)"
                )
        else:
            if self._in_row >= steps:
                trainer.say(f"the loss spike ended before step {row.step}: {loss:.4g}")
            self._in_row = 0
        self._losses.append(loss)

    def _usual(self) -> tuple[float, float]:
        """The median, and what a loss must not be above."""
        if len(self._losses) < _WINDOW // 2:
            return math.nan, math.inf
        middle = median(self._losses)
        deviation = _NORMAL * median(abs(loss - middle) for loss in self._losses)
        return middle, middle + self._config.spike * max(deviation, _LEAST * abs(middle))
