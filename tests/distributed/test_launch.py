"""Under every launcher two ranks find each other, and none outlives the other or its launcher."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringmoe.testing.ranks import free_port
from tests.fixtures.jobs import BIN, ROOT, started

pytestmark = pytest.mark.distributed

SCRIPT = ROOT / "tests" / "fixtures" / "rank.py"
LAUNCHERS = ("torchrun", "deepspeed", "mpi")


def _command(launcher: str) -> list[object]:
    port = str(free_port())
    return {
        "torchrun": [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={port}", SCRIPT],
        "deepspeed": [BIN / "deepspeed", "--num_gpus=2", f"--master_port={port}", SCRIPT],
        "mpi": [BIN / "mpirun", "-n", "2", "--allow-run-as-root", "--oversubscribe", sys.executable, SCRIPT],
        "none": [sys.executable, SCRIPT],
    }[launcher]


@contextmanager
def _job(launcher: str, deed: str, folder: Path) -> Iterator[subprocess.Popen]:
    """A started job; no rank of it outlives the block."""
    try:
        with started((*_command(launcher), deed, folder), folder) as job:
            yield job
    finally:
        for rank in folder.glob("rank*"):
            if _is_running(_reported(folder, rank.name)[-1]):
                os.kill(_reported(folder, rank.name)[-1], signal.SIGKILL)


def _reported(folder: Path, rank: str) -> tuple[str, int, int, int, int]:
    """Launcher, world size, local rank, sum over ranks and process of a rank, as it wrote them itself."""
    launcher, *numbers = (folder / rank).read_text().split()
    return launcher, *map(int, numbers)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(until: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _wait_for_ranks(folder: Path, num: int = 2) -> list[int]:
    """Processes of the ranks, once all have met."""
    assert _wait(lambda: sum(path.stat().st_size > 0 for path in folder.glob("rank*")) == num, 180), _output(folder)
    return [_reported(folder, f"rank{rank}")[-1] for rank in range(num)]


def _assert_met(launcher: str, folder: Path) -> None:
    for rank in range(2):
        assert _reported(folder, f"rank{rank}")[:4] == (launcher, 2, rank, 3)


def _output(folder: Path) -> str:
    return (folder / "output").read_text()


def test_two_ranks_meet_and_end(tmp_path):
    """Under the other launchers they meet in the tests below, and end well in those of whole runs."""
    with _job("mpi", "end", tmp_path) as job:
        assert job.wait(timeout=120) == 0, _output(tmp_path)
    _assert_met("mpi", tmp_path)


def test_a_plain_process_is_a_world_of_its_own(tmp_path):
    with _job("none", "end", tmp_path) as job:
        assert job.wait(timeout=120) == 0, _output(tmp_path)
    assert _reported(tmp_path, "rank0")[:4] == ("none", 1, 0, 1)


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(launcher, marks=[pytest.mark.slow] * (launcher != "mpi")) for launcher in LAUNCHERS],
)
def test_a_rank_that_raises_ends_the_job(launcher, tmp_path):
    with _job(launcher, "raise", tmp_path) as job:
        ranks = _wait_for_ranks(tmp_path)
        assert _wait(lambda: job.poll() is not None, 120), "still running"
        assert job.returncode not in (0, None)
        assert _wait(lambda: not any(map(_is_running, ranks)), 60)
    _assert_met(launcher, tmp_path)
    assert "[rank 1] Traceback" in _output(tmp_path)
    assert "ValueError: only here" in _output(tmp_path)


@pytest.mark.slow
def test_what_the_user_can_mend_is_said_without_a_traceback(tmp_path):
    with _job("mpi", "refuse", tmp_path) as job:
        assert job.wait(timeout=120) == 2
    assert "[rank 1] error: setting x is wrong: use y" in _output(tmp_path)
    assert "Traceback" not in _output(tmp_path)


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("deepspeed", signal.SIGTERM),
        pytest.param("deepspeed", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("torchrun", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("mpi", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_no_rank_outlives_its_launcher(launcher, number, tmp_path):
    with _job(launcher, "stay", tmp_path) as job:
        ranks = _wait_for_ranks(tmp_path)
        os.kill(job.pid, number)
        job.wait(timeout=120)
        assert _wait(lambda: not any(map(_is_running, ranks)), 60), "orphans"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_ends_the_job(launcher, tmp_path):
    with _job(launcher, "stay", tmp_path) as job:
        ranks = _wait_for_ranks(tmp_path)
        os.kill(ranks[1], signal.SIGKILL)
        assert _wait(lambda: job.poll() is not None, 120), "still running"
        assert job.returncode != 0
        assert _wait(lambda: not any(map(_is_running, ranks)), 60)
