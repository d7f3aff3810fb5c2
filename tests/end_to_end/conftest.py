"""What whole runs train on, and the run that others are compared with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringmoe.distributed.launch import World, start, stop
from tests.fixtures.launchers import run_forked
from tests.fixtures.shards import build_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of all four modalities with tiles of 32 pixels, and beside them the folder of their scenes."""
    return build_shards(tmp_path_factory.mktemp("small"), tile=32, side=128)


@pytest.fixture(scope="session")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks, without any interruption."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_forked(shards, output)
    return output


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One rank in this process, for runs without a launcher."""
    yield start()
    stop()
