"""Shards that runs of the tests are checked against."""

from pathlib import Path

import pytest

from tests.fixtures.shards import build_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of all four modalities with tiles of 32 pixels."""
    return build_shards(tmp_path_factory.mktemp("small"), tile=32, side=96)
