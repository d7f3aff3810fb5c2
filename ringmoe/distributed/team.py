"""Ranks that share out independent work: who takes what is settled by counting, on a store that the first one holds.

No collective is called, so a quick rank never waits for a slow one. When a rank fails its launcher ends the others; and
when the first is gone, the others notice at their next word.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ringmoe.distributed.environment import Place
from ringmoe.distributed.launch import follow_launcher
from ringmoe.errors import ConfigError, TeamError

_POLL = 0.05  # seconds
_PATIENCE = timedelta(minutes=5)  # for a rank that starts late, and for one answer
_END = ""
_LOST = (dist.DistNetworkError, dist.DistStoreError)


class RankTeam:
    """The ranks of a job as a team: the first leads, the others help.

    Attributes:
        leads: Whether this is the first.
        size: How many ranks there are.
    """

    def __init__(self, place: Place) -> None:
        """Meets the first rank.

        Raises:
            ConfigError: It is not to be met.
        """
        self.leads = place.rank == 0
        self.size = place.size
        self._num_told = 0
        self._num_read = 0
        try:
            self._store = TCPStore(place.address, place.port, None, self.leads, _PATIENCE, wait_for_workers=False)
        except _LOST as error:
            raise ConfigError(
                f"rank {place.rank} of {place.size} did not meet the first at {place.address}:{place.port}: {error}; "
                "is the port taken by another job, or the host not to be reached?"
            ) from error

    def tell(self, message: str) -> None:
        """Says something to all helpers, which each hear all of it in order."""
        self._store.set(f"told/{self._num_told}", message)
        self._num_told += 1

    def hear(self) -> str | None:
        """Waits for what the first says next; None when it needs no more help.

        Raises:
            TeamError: The first is gone.
        """
        key = f"told/{self._num_told}"
        with _store_of_the_first():
            while not self._store.check([key]):
                time.sleep(_POLL)
            message = self._store.get(key).decode()
            self._num_told += 1
            if message == _END:
                self._store.add("gone", 1)
        return None if message == _END else message

    def draw(self, num: int) -> Iterator[int]:
        """Numbers below ``num``; each goes to one rank only. Begins anew with every ``tell``.

        Raises:
            TeamError: The first is gone.
        """
        while (number := self._add(f"drawn/{self._num_told}") - 1) < num:
            yield number

    def report(self, message: str) -> None:
        """Says something to the first.

        Raises:
            TeamError: The first is gone.
        """
        key = f"report/{self._add('reports') - 1}"
        with _store_of_the_first():
            self._store.set(key, message)

    def reports(self) -> Iterator[str]:
        """What helpers have reported since it was asked the last time."""
        while self._store.check([key := f"report/{self._num_read}"]):
            message = self._store.get(key).decode()
            self._store.delete_key(key)
            self._num_read += 1
            yield message

    def dismiss(self) -> None:
        """Lets the helpers go, and waits until each has heard it: the store goes with the first rank."""
        self._store.set(f"told/{self._num_told}", _END)
        deadline = time.monotonic() + _PATIENCE.total_seconds()
        while self._store.add("gone", 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(_POLL)

    def _add(self, key: str) -> int:
        with _store_of_the_first():
            return int(self._store.add(key, 1))


@contextmanager
def meet(place: Place) -> Iterator[RankTeam | None]:
    """The team of this job; None where this process is alone.

    When the block ends well for the first rank the helpers are let go. When it does not, no rank stays: its launcher
    ends the others, and one whose launcher is gone ends by itself.

    Args:
        place: The place of this process in the job.

    Raises:
        ConfigError: The first rank is not to be met.
    """
    if place.size == 1:
        yield None
        return
    follow_launcher(place.launcher)
    team = RankTeam(place)
    yield team
    if team.leads:
        team.dismiss()


@contextmanager
def _store_of_the_first() -> Iterator[None]:
    try:
        yield
    except _LOST as error:
        raise TeamError("the first rank is gone; look above for what it said last") from error
