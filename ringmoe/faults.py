"""Places in the code at which a test may halt a process, to kill it exactly there.

A place is ``point("forward")``. It calls a function that does nothing, unless the process was started with the variable
``RINGMOE_HALT`` in its environment, as only tests do.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

HALT = "RINGMOE_HALT"
_TICK = 0.01  # seconds between looks


def _go_on(place: str) -> None:
    """Nothing happens here."""


class _Halt:
    """Waits where a rank comes to a place for the n-th time, for as long as a file is there that it makes itself.

    Args:
        order: ``RANK,VISIT,FILE,PLACE``, with visits counted from 1.
    """

    def __init__(self, order: str) -> None:
        self._rank, visit, file, self._place = order.split(",", 3)
        self._visits_left, self._file = int(visit), Path(file)

    def __call__(self, place: str) -> None:
        if place != self._place or os.environ.get("RANK", "0") != self._rank:
            return
        self._visits_left -= 1
        if self._visits_left == 0:
            self._file.write_text(str(os.getpid()), encoding="utf-8")
            while self._file.exists():
                time.sleep(_TICK)


point: Callable[[str], None] = _Halt(os.environ[HALT]) if HALT in os.environ else _go_on
"""Says that the process comes to a place, by its name."""
