"""A rank's start and end in a process of its own; several ranks are in tests/distributed/test_launch.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringmoe.distributed.launch import _is_orphan, guarded
from ringmoe.errors import ConfigError

START = "from ringmoe.distributed.launch import *\n"


def _run(code: str, **environ: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-c", START + code], env=kept | environ, capture_output=True, text=True, timeout=120
    )


def test_one_process_starts_computes_and_ends_twice():
    answer = _run(
        "for _ in range(2):\n"
        "    world = start()\n"
        "    total = torch.ones(1)\n"
        "    dist.all_reduce(total)\n"
        "    print(world.rank, world.size, world.launcher, world.device, total.item(), os.environ['LOCAL_RANK'])\n"
        "    stop()\n"
        "stop()\n"
        "print(torch.get_num_threads() == len(os.sched_getaffinity(0)))",
        DS_ACCELERATOR="cpu",
    )
    assert answer.stdout.splitlines() == ["0 1 none cpu 1.0 0", "0 1 none cpu 1.0 0", "True"], answer.stderr


@pytest.mark.parametrize(
    ("ending", "code", "shown"),
    [
        (None, 0, ""),
        (ConfigError("x is wrong: use y"), 2, "error: x is wrong: use y\n"),
        (ValueError("ours"), 1, "ValueError: ours\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
        (SystemExit(7), 7, ""),
        (SystemExit("no"), 1, "no\n"),
        (SystemExit(), 0, ""),
    ],
    ids=repr,
)
def test_every_ending_has_its_exit_code(ending, code, shown, capsys):
    def main() -> None:
        if ending is not None:
            raise ending

    assert guarded(main) == code
    said = capsys.readouterr().err
    assert said.endswith(shown)
    assert ("Traceback" in said) == (type(ending) is ValueError)


def test_a_port_that_is_taken_is_an_error_in_words():
    answer = _run(
        "import socket\n"
        "taken = socket.socket()\n"
        "taken.bind(('127.0.0.1', 0))\n"
        "taken.listen()\n"
        "os.environ.update(RANK='0', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')\n"
        "os.environ['MASTER_PORT'] = str(taken.getsockname()[1])\n"
        "sys.exit(guarded(start))"
    )
    assert answer.returncode == 2, answer.stderr
    assert "rank 0 of 2 did not meet the others at 127.0.0.1:" in answer.stderr
    assert "MASTER_PORT" in answer.stderr


def test_freed_memory_is_kept_for_the_next_step():
    code = (
        "import resource\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "start()\n"
        "x = torch.ones(1 << 24)\n"  # 64 MB, above what the allocator keeps by itself
        "for _ in range(20):\n"
        "    x + x\n"
        "before = faults()\n"
        "for _ in range(5):\n"
        "    x + x\n"
        "print(faults() - before)"
    )
    assert int(_run(code, DS_ACCELERATOR="cpu").stdout) < 1000  # 82,000 pages otherwise


def _ended() -> int:
    """A process that was there once."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


@pytest.mark.parametrize("launcher", ["slurm", "mpi", "torchrun", "deepspeed"])
def test_a_rank_whose_parent_lies_outside_of_its_container_is_no_orphan(launcher):
    assert not _is_orphan(launcher, {os.getpid(): 0})


def test_only_what_started_ranks_itself_leaves_orphans_to_the_first_process(monkeypatch):
    _hide_command_lines(monkeypatch)  # so that it is not asked what the first process of the tests is
    assert not _is_orphan("mpi", {2: 1})
    assert not _is_orphan("slurm", {2: 1})
    assert _is_orphan("torchrun", {2: 1})
    assert _is_orphan("deepspeed", {3: 2, 2: 1})


def test_a_launcher_that_is_hidden_is_not_gone(monkeypatch):
    gone = _ended()
    assert _is_orphan("mpi", {2: gone})
    assert not _is_orphan("slurm", {2: gone})
    _hide_command_lines(monkeypatch)
    assert not _is_orphan("mpi", {2: os.getpid()})
    assert _is_orphan("mpi", {2: gone})


def _hide_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc does with the option hidepid, which only root can set."""

    def hidden(path: Path) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_bytes", hidden)
