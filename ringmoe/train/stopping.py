"""Being asked to stop: SIGTERM and SIGINT let the step in progress finish, on all ranks at the same one."""

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Listens for SIGTERM and SIGINT of this process and agrees with the other ranks about them.

    A signal may reach one rank only, or the ranks between different steps. A second signal ends the process at once.
    All ranks construct it together.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        several = dist.is_initialized() and dist.get_world_size() > 1
        # the ranks agree on the host: an exchange on the device would have the host wait for the step to end
        self._group: Any = dist.new_group(backend="gloo") if several else None

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. All ranks call it together and get the same answer."""
        if self._group is None:
            return self._asked
        asked = torch.tensor(int(self._asked))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked)

    def ask(self) -> None:
        """Asks all ranks to stop, from this one."""
        self._asked = True

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.ask()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
