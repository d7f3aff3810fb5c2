"""The job as a person starts it: two expert-parallel ranks, killed, continued by the same command; any launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringmoe.checkpoint.runs import step_folder
from ringmoe.testing.ranks import free_port
from tests.fixtures.small_run import rows_of, small_run, weights_of

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STEPS = 24
OPTIONS = "--parallel.expert-parallel 2 --every.checkpoint 4 --every.evaluation 12"


def _start(launcher: str, shards: Path, output: Path) -> subprocess.Popen[str]:
    port = free_port()
    words = {
        "deepspeed": [BIN / "deepspeed", "--num_gpus=2", f"--master_port={port}"],
        "torchrun": [BIN / "torchrun", "--nproc-per-node=2", f"--master-port={port}"],
        "mpirun": [BIN / "mpirun", "-n", "2", "--allow-run-as-root", "--oversubscribe", sys.executable],
    }[launcher]
    command = [*words, ROOT / "launcher" / "pretrain.py", *small_run(shards, output, steps=STEPS, options=OPTIONS)]
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(
        list(map(str, command)),
        env=environ,
        cwd=output.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _run(launcher: str, shards: Path, output: Path) -> str:
    """Runs the command to its end; what it printed."""
    job = _start(launcher, shards, output)
    try:
        printed, _ = job.communicate(timeout=240)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Path:
    """The run without any interruption."""
    output = tmp_path_factory.mktemp("whole") / "run"
    _run("deepspeed", shards, output)
    return output


def test_a_killed_job_goes_on_bit_for_bit(whole, shards, tmp_path):
    output = tmp_path / "run"
    job = _start("deepspeed", shards, output)
    while not step_folder(output, 4).exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    printed = _run("deepspeed", shards, output)
    assert f"continuing {output} after step" in printed
    assert "nothing to do" not in printed
    assert rows_of(output) == rows_of(whole)
    assert weights_of(output) == weights_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_other_launchers_give_the_same_run(launcher, whole, shards, tmp_path):
    _run(launcher, shards, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert weights_of(tmp_path / "run") == weights_of(whole)


@pytest.mark.slow
def test_a_wrong_setting_is_refused_once_and_before_anything_starts(shards, tmp_path):
    job = _start("deepspeed", shards / "nowhere", tmp_path / "run")
    printed, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert printed.count("error: ") == 1
    assert "should be a folder made by" in printed
    assert not (tmp_path / "run").exists()
