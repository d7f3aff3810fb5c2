"""Whoever is killed, wherever the job stands: nothing of it stays, and the same command ends as if nothing had been."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.small_run import rows_of, weights_of
from tests.reliability.jobs import Job
from tests.reliability.matrix import KILLS, Kill
from tests.reliability.page import RECORDS

pytestmark = [pytest.mark.distributed, pytest.mark.kills]

MOST_SECONDS = 30  # until nothing of a killed job runs


def _marks(kill: Kill) -> list[pytest.MarkDecorator]:
    return [] if kill.quick else [pytest.mark.reliability]


@pytest.mark.parametrize("kill", [pytest.param(kill, id=kill.name, marks=_marks(kill)) for kill in KILLS])
def test_a_killed_job_ends_and_goes_on_bit_for_bit(kill, shards, uninterrupted, tmp_path, request):
    _record(kill, failed=True)  # unless it comes to its end
    output = tmp_path / "run"
    if kill.interrupted:
        shutil.copytree(request.getfixturevalue("interrupted"), output)
    options = "--save-beside" if kill.beside else ""
    job = Job(shards, output, options, launcher=kill.launcher)
    job.start(kill.place, visit=kill.visit, rank=kill.rank)
    halted = job.wait_until_halted()
    if kill.torn:
        (unfinished,) = output.glob("checkpoints/*.tmp")
        os.truncate(unfinished / kill.torn, (unfinished / kill.torn).stat().st_size // 2)
    victims = {
        "this rank": [halted],
        "the other rank": [process for process in job.ranks() if process != halted],
        "all ranks": job.ranks(),
        "the launcher": [job.launcher()] if kill.launcher else [],
    }[kill.victims]
    job.kill(victims, getattr(signal, kill.signal))
    killed_at = time.monotonic()
    job.go_on()
    codes = job.codes()
    seconds = time.monotonic() - killed_at
    assert all(codes), f"{codes}\n{job.printed}"
    assert seconds < MOST_SECONDS * _load(), job.printed

    job = Job(shards, output, options)  # without a launcher, which adds its imports and nothing else
    job.start()
    assert not any(job.codes()), job.printed
    start = f"continuing {output} after step {kill.resumes} of" if kill.resumes else f"a new run in {output}"
    assert start in job.printed
    assert rows_of(output) == rows_of(uninterrupted)
    assert weights_of(output) == weights_of(uninterrupted)
    assert not list(output.glob("checkpoints/*.tmp"))
    _record(kill, codes=codes, seconds=round(seconds, 1), **{"resumed after": kill.resumes})


def _load() -> float:
    """How much longer things may take since others work on this machine too."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _record(kill: Kill, **seen: object) -> None:
    folder = os.environ.get(RECORDS)
    if folder:
        record = {"name": kill.name, **seen}
        Path(folder, f"{KILLS.index(kill):03d}.json").write_text(json.dumps(record), encoding="utf-8")
