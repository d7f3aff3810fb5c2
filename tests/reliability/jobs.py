"""Jobs that are halted at a place in the code, so that they can be killed there, and started again."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

from ringmoe.faults import HALT
from ringmoe.testing.ranks import free_port
from tests.fixtures.forked import start_ranks
from tests.fixtures.jobs import environment
from tests.fixtures.launchers import command, variables
from tests.fixtures.small_run import small_run
from tests.reliability.matrix import OPTIONS, STEPS

PATIENCE = 150.0  # seconds for anything to happen on a machine with other work
_TICK = 0.02


class Job:
    """A job of two ranks that writes into one folder; starting it again is the same command."""

    def __init__(
        self, shards: Path, output: Path, options: str = "", *, launcher: bool = False, steps: int = STEPS
    ) -> None:
        self._arguments = small_run(shards, output, steps=steps, options=f"{OPTIONS} {options}")
        self._log, self._halt = output.parent / "printed", output.parent / "halted"
        self._launcher = launcher
        self._output = output
        self._forked: list[BaseProcess] = []
        self._started: subprocess.Popen[bytes] | None = None

    @property
    def printed(self) -> str:
        """What all ranks have said since the last start."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def start(self, place: str = "", *, visit: int = 1, rank: int = 0) -> None:
        """Starts the job; ``rank`` will halt where it comes to ``place`` for the ``visit``-th time."""
        self._log.write_text("")
        halt = {HALT: f"{rank},{visit},{self._halt},{place}"} if place else {}
        if not self._launcher:
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            self._forked = start_ranks(self._arguments, self._log, meeting | halt, world=2)
            return
        with self._log.open("w") as log:
            self._started = subprocess.Popen(
                [*command("deepspeed"), *self._arguments],
                env=environment() | variables() | halt,
                cwd=self._output.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_halted(self) -> int:
        """Waits for the rank that halts; its process."""
        assert _wait(lambda: not self.goes_on()), f"still running\n{self.printed}"
        assert self._halted(), f"nobody came to that place\n{self.printed}"
        return self._halted()

    def goes_on(self) -> bool:
        """Whether it runs, and no rank is halted."""
        return self._is_running() and not self._halted()

    def go_on(self) -> None:
        """Lets the halted rank go on, if it is alive."""
        self._halt.unlink()

    def ranks(self) -> list[int]:
        """Processes of the ranks that run."""
        if not self._launcher:
            return [process.pid for process in self._forked if process.pid and process.is_alive()]
        return [process for process in _processes() if self._is_rank(process)]

    def launcher(self) -> int:
        """Process of the launcher."""
        assert self._started is not None
        return self._started.pid

    def left(self) -> list[int]:
        """Processes that hold what the job prints into: its ranks, and whatever they have started."""
        return [process for process in _processes() if str(self._log) in _files_of(process)]

    def kill(self, processes: Iterable[int], number: signal.Signals) -> None:
        """Sends all of them the signal."""
        for process in processes:
            os.kill(process, number)

    def codes(self) -> list[int]:
        """Waits for the end of everything; exit codes of the ranks, or of the launcher."""
        try:
            assert _wait(lambda: not self._is_running()), f"still running\n{self.printed}"
        finally:
            self.end()
        codes = [self._started.returncode] if self._started else [process.exitcode for process in self._forked]
        return [code for code in codes if code is not None]

    def _halted(self) -> int:
        text = self._halt.read_text() if self._halt.exists() else ""
        return int(text or 0)

    def _is_running(self) -> bool:
        return bool(self.ranks()) or (self._started is not None and self._started.poll() is None)

    def _is_rank(self, process: int) -> bool:
        words = _words_of(process)
        return bytes(self._output) in words and any(word.startswith(b"--local_rank=") for word in words)

    def end(self) -> None:
        """Whatever still runs is ended, so that a test that fails leaves nothing."""
        for process in self.ranks():
            os.kill(process, signal.SIGKILL)
        if self._started is not None:
            if self._started.poll() is None:
                os.killpg(self._started.pid, signal.SIGKILL)
            self._started.wait()
        for forked in self._forked:
            forked.join()


def _wait(until: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(_TICK)
    return True


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _words_of(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _files_of(process: int) -> set[str]:
    """What a process has open."""
    try:
        return {os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()}
    except OSError:
        return set()
