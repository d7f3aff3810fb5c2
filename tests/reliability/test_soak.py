"""Two thousand steps with a kill every hundred or two: nothing grows, nothing stays, nothing is lost."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.reliability.page import RECORDS, SOAK
from tests.reliability.soak import STEPS, soak

pytestmark = [pytest.mark.distributed, pytest.mark.reliability, pytest.mark.timeout(4 * 3600)]

MOST_GROWTH = 0.01  # of the memory of a rank, over the second half of a run


def test_a_long_run_that_is_killed_time_and_again(shards, tmp_path, capfd):
    def tell(line: str) -> None:
        with capfd.disabled():
            print(f"soak: {line}", file=sys.stderr, flush=True)

    record = soak(shards, tmp_path, steps=STEPS, tell=tell)
    if folder := os.environ.get(RECORDS):
        Path(folder, SOAK.name).write_text(json.dumps(record), encoding="utf-8")
    assert max(record["growth"]) < MOST_GROWTH
