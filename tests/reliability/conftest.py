"""What the jobs that are killed train on, and the runs that they are compared with."""

import os
import signal
from pathlib import Path

import pytest

from tests.fixtures.launchers import variables
from tests.fixtures.shards import build_shards
from tests.reliability.jobs import Job


@pytest.fixture(scope="session", autouse=True)
def _settled() -> None:
    """All ranks are forked from a process that has the environment of this one."""
    os.environ.update(variables())


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of all four modalities with tiles of 32 pixels."""
    return build_shards(tmp_path_factory.mktemp("small"), tile=32, side=128)


@pytest.fixture(scope="session")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    job = Job(shards, output)
    job.start()
    assert job.codes() == [0, 0], job.printed
    return output


@pytest.fixture(scope="session")
def interrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that was killed after two steps and just before its third checkpoint got its name."""
    output = tmp_path_factory.mktemp("interrupted") / "run"
    job = Job(shards, output)
    job.start("rename step-00000003.tmp")
    job.wait_until_halted()
    job.kill(job.ranks(), signal.SIGKILL)
    job.codes()
    return output
