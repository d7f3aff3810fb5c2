"""The job as a person starts it: two expert-parallel ranks, killed, continued by the same command; any launcher."""

import os
import signal
import time

import pytest

from ringmoe.checkpoint.runs import step_folder
from tests.fixtures.launchers import run, start
from tests.fixtures.small_run import rows_of, weights_of

# with the tests of Slurm, which compare with the same run
pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("launchers")]


def test_a_killed_job_goes_on_bit_for_bit(whole, shards, tmp_path):
    output = tmp_path / "run"
    job = start("deepspeed", shards, output)
    while not step_folder(output, 4).exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    printed = run("deepspeed", shards, output)
    assert f"continuing {output} after step" in printed
    assert "nothing to do" not in printed
    assert rows_of(output) == rows_of(whole)
    assert weights_of(output) == weights_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_other_launchers_give_the_same_run(launcher, whole, shards, tmp_path):
    run(launcher, shards, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert weights_of(tmp_path / "run") == weights_of(whole)


@pytest.mark.slow
def test_a_wrong_setting_is_refused_once_and_before_anything_starts(shards, tmp_path):
    job = start("deepspeed", shards / "nowhere", tmp_path / "run")
    printed, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert printed.count("error: ") == 1
    assert "should be a folder made by" in printed
    assert not (tmp_path / "run").exists()
