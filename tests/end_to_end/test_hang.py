"""A rank that is stopped takes the job with it, says where all ranks stood, and the same command continues."""

import os
import signal
import time
from pathlib import Path

import pytest

from ringmoe.checkpoint.runs import step_folder
from tests.fixtures.launchers import run_forked, start
from tests.fixtures.small_run import rows_of, weights_of

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("launchers")]


def ranks_of(output: Path) -> list[int]:
    """Processes that run the launcher file for this folder, without the launchers themselves."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_rank = any(word.startswith(b"--local_rank=") for word in words)
        if is_rank and bytes(output) in words:
            found.append(int(process.name))
    return found


def test_a_stopped_rank_ends_the_job_within_seconds(whole: Path, shards: Path, tmp_path: Path):
    output = tmp_path / "run"
    job = start("deepspeed", shards, output, "--hang-after 3")
    while not step_folder(output, 4).exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    first, *others = ranks_of(output)
    assert others
    os.kill(first, signal.SIGSTOP)
    printed, _ = job.communicate(timeout=150)
    assert job.returncode != 0
    assert "no progress for" in printed
    assert not ranks_of(output)
    stacks = [path.read_text() for path in sorted((output / "stacks").iterdir())]
    assert len(stacks) == 2
    for text in stacks:
        assert "in fit" in text
    assert f"continuing {output} after step" in run_forked(shards, output)
    assert rows_of(output) == rows_of(whole)
    assert weights_of(output) == weights_of(whole)
