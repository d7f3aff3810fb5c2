"""A rank that hangs does not say so: somebody has to look at the clock.

Ranks wait for each other in every step, so when one of them stops, all others stand still with it, for as long as the
process group's timeout or for ever. Each rank therefore has a thread that looks whether steps still end. Where they do
not, it has all ranks of its machine write where they are, also one that was stopped, and ends them.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

EXIT_CODE = 124
"""What a hung rank ends with, as ``timeout`` does."""

_WRITE_STACKS = signal.SIGUSR2
_GRACE = 5.0  # seconds for a rank to begin with its stacks, or to go on with them
_STILL = 1.0  # seconds without a new line after which stacks are taken for whole
_PATIENCE = 10.0  # how many times as long as the one before a step may take
_TICK = 1.0  # seconds between looks at the clock


class Watchdog:
    """Ends the ranks of this machine when this one makes no progress.

    Whoever sends SIGUSR2 to a rank gets its stacks too, and the run goes on.

    Attributes:
        path: Where this rank writes its stacks.
    """

    def __init__(
        self, limit: float, folder: Path, rank: int, processes: Mapping[int, int], *, pause: float = 0.0
    ) -> None:
        """Starts to watch.

        Args:
            limit: Seconds without progress that are taken for a hang, or ten times the step before if that is more.
            folder: Where each rank writes its stacks, ``rank-0.txt`` and so on.
            rank: This rank.
            processes: Process of each rank on this machine.
            pause: Seconds that are allowed between steps, beyond ten times the limit: the model is saved there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _stacks(folder, rank)
        self._folder, self._rank, self._processes, self._limit, self._pause = folder, rank, processes, limit, pause
        self._file = self.path.open("w")
        # in C, without Python's lock: it writes whatever the process is waiting in
        faulthandler.register(_WRITE_STACKS, self._file, all_threads=True)
        self._step = limit  # the first step has things to compile and to load
        self._since = time.monotonic()
        self._deadline = self._since + _PATIENCE * limit
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def begin_step(self) -> None:
        """A step begins."""
        self._since = time.monotonic()
        self._deadline = self._since + max(self._limit, _PATIENCE * self._step)

    def end_step(self) -> None:
        """It ended. Saving and evaluating may follow, which take longer than a step."""
        now = time.monotonic()
        self._step, self._since = now - self._since, now
        self._deadline = now + _PATIENCE * max(self._limit, self._step) + self._pause

    def close(self) -> None:
        """Watches no longer; stacks that nobody wrote leave no file."""
        self._over.set()
        self._thread.join()
        faulthandler.unregister(_WRITE_STACKS)
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
            with suppress(OSError):  # other ranks' files
                self._folder.rmdir()

    def _watch(self) -> None:
        tick, seen = min(_TICK, self._limit / 4), time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            asleep, seen = now - seen - tick, now
            if asleep > max(self._limit / 2, _TICK):  # this process was stopped itself, perhaps with its whole job
                self._deadline += asleep
            elif now > self._deadline:
                self._end(now - self._since)

    def _end(self, waited: float) -> None:
        """Has all ranks of the machine write their stacks, and ends them; this one last."""
        with suppress(OSError):  # whoever read the output may be gone already
            print(
                f"[rank {self._rank}] no progress for {waited:.0f} s: a rank was stopped, or waits for something "
                f"that does not come (--hang-after). Stacks of the ranks of this machine are in {self._folder}. The "
                "job ends; the same command continues it from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        for process in self._processes.values():
            with suppress(OSError):
                os.kill(process, signal.SIGCONT)
                os.kill(process, _WRITE_STACKS)
        self._wait_for_stacks()
        for process in self._processes.values():
            if process != os.getpid():
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        os._exit(EXIT_CODE)

    def _wait_for_stacks(self) -> None:
        """Until every rank has written and no file grows any more; a busy machine writes a stack in pieces."""
        end = time.monotonic() + _GRACE
        sizes, still = self._sizes(), time.monotonic()
        while (now := time.monotonic()) < end and (not all(sizes) or now - still < _STILL):
            time.sleep(0.05)
            before, sizes = sizes, self._sizes()
            if sizes != before:
                still, end = now, now + _GRACE

    def _sizes(self) -> list[int]:
        paths = (_stacks(self._folder, rank) for rank in self._processes)
        return [path.stat().st_size if path.exists() else 0 for path in paths]


def _stacks(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.txt"
