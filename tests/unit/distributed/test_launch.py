"""A rank's start and end in a process of its own; several ranks are in tests/distributed/test_launch.py."""

import os
import subprocess
import sys

import pytest

from ringmoe.distributed.launch import guarded
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
