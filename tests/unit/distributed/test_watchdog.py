"""A process that makes no progress is ended, and says where it stood."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from ringmoe.distributed.watchdog import EXIT_CODE, Watchdog

HANGS = """
import os, sys, time
from pathlib import Path
from ringmoe.distributed.watchdog import Watchdog

def waits_for_ever():
    time.sleep(600)

other = int(sys.argv[2])
dog = Watchdog(0.1, Path(sys.argv[1]), 0, {0: os.getpid(), 1: other})
for _ in range(3):
    dog.begin_step()
    dog.end_step()
dog.begin_step()
waits_for_ever()
"""


def test_a_hang_is_ended_with_the_stacks_of_all_ranks(tmp_path: Path):
    # the other rank is stopped, as by a debugger or a machine out of memory
    code = "import time, sys; from pathlib import Path; from ringmoe.distributed.watchdog import Watchdog\n"
    code += "dog = Watchdog(1e3, Path(sys.argv[1]), 1, {}); print(flush=True)\nwhile True: time.sleep(0.01)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        other.send_signal(signal.SIGSTOP)
        arguments = [sys.executable, "-c", HANGS, tmp_path, str(other.pid)]
        found = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        assert other.wait(timeout=60) == -signal.SIGKILL
    assert found.returncode == EXIT_CODE
    assert "[rank 0] no progress for" in found.stderr
    assert str(tmp_path) in found.stderr
    assert "waits_for_ever" in (tmp_path / "rank-0.txt").read_text()
    assert "in <module>" in (tmp_path / "rank-1.txt").read_text()


def test_progress_is_left_alone_and_leaves_nothing_behind(tmp_path: Path):
    dog = Watchdog(0.2, tmp_path / "stacks", 0, {})
    for _ in range(4):
        dog.begin_step()
        time.sleep(0.1)
        dog.end_step()
    time.sleep(0.5)  # longer than a step may take, but between steps
    dog.close()
    assert not (tmp_path / "stacks").exists()


def test_a_job_that_was_suspended_as_a_whole_goes_on(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from ringmoe.distributed.watchdog import Watchdog\n"
    code += "dog = Watchdog(0.4, Path(sys.argv[1]), 0, {}); print(flush=True)\n"
    code += "for _ in range(60): dog.begin_step(); time.sleep(0.1); dog.end_step()\n"
    code += "dog.close()"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as job:
        job.stdout.readline()
        time.sleep(0.5)
        job.send_signal(signal.SIGSTOP)
        time.sleep(5)  # a step may take 1 second
        job.send_signal(signal.SIGCONT)
        assert job.wait(timeout=60) == 0


def test_slow_steps_may_be_slow(tmp_path: Path):
    dog = Watchdog(0.1, tmp_path / "stacks", 0, {})
    for seconds in (0.3, 0.6):  # the first may take as long as it likes, the next ten times as long
        dog.begin_step()
        time.sleep(seconds)
        dog.end_step()
    dog.close()
