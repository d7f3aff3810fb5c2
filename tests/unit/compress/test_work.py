"""Interrupted work continues, side by side or one after the other, and nothing else is taken for it."""

import errno
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress import save as save_module
from ringmoe.compress.apply import source_config
from ringmoe.compress.plan import CompressionPlan, Options, make_plan
from ringmoe.compress.save import Resources, check, needed, parts_of, save
from ringmoe.compress.work import Work, digest_of, folder_of
from ringmoe.compress.workers import each, num_cores
from ringmoe.errors import CheckpointError


@pytest.fixture(autouse=True)
def _many_parts(monkeypatch):
    monkeypatch.setattr(save_module, "_PART_BYTES", 20_000)


@pytest.fixture
def plan(reader) -> CompressionPlan:
    return make_plan(source_config(reader), Options(mode="kc", modalities=("opt",)))


@pytest.fixture
def whole(plan, reader, tmp_path) -> CheckpointReader:
    """The result of work that nobody disturbed."""
    save(plan, reader, tmp_path / "whole")
    return CheckpointReader(tmp_path / "whole")


class Shares:
    """Notes how much was done at each report, and interrupts once more than a share of the parts is."""

    def __init__(self, until: float = 1.0) -> None:
        self.until, self.made = until, []

    def __call__(self, stage: str, done: float, total: float) -> None:
        if stage != "verifying":
            self.made.append(done / total)
            if self.until < done / total < 1:
                raise KeyboardInterrupt


def interrupted(plan: CompressionPlan, reader: CheckpointReader, out: Path) -> Path:
    """Work that ends after about a half; gives its folder."""
    with pytest.raises(KeyboardInterrupt):
        save(plan, reader, out, Shares(0.5))
    assert not out.exists()
    return folder_of(out)


def test_interrupted_work_continues_where_it_was(plan, reader, whole, tmp_path):
    out = tmp_path / "out"
    num_parts = len(parts_of(plan, reader))
    assert num_parts > 4
    left = check(plan, reader, out)
    work = interrupted(plan, reader, out)
    assert check(plan, reader, out) < left
    journal = work / "journal.jsonl"
    num_finished = journal.read_text().count('"index"')
    journal.write_text(journal.read_text() + '\n{"index": 0, "table": {"fi')  # and a crash in the middle of a line
    shares = Shares()
    merges = save(plan, reader, out, shares)
    assert shares.made[0] > 0.5
    assert len(shares.made) == 1 + num_parts - num_finished
    assert shares.made[-1] == 1
    assert not work.exists()
    result = CheckpointReader(out)
    result.verify()
    assert all(torch.equal(result.tensor(name), whole.tensor(name)) for name in whole.names)
    assert result.document("compression.json") == whole.document("compression.json")
    assert len(merges) == 6


def test_a_finished_part_that_changed_is_made_again(plan, reader, whole, tmp_path):
    out = tmp_path / "out"
    work = interrupted(plan, reader, out)
    damaged, missing, *_ = sorted((work / "files").iterdir())
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    missing.unlink()
    save(plan, reader, out)
    result = CheckpointReader(out)
    result.verify()
    assert all(torch.equal(result.tensor(name), whole.tensor(name)) for name in whole.names)


def test_other_work_is_not_continued(plan, reader, tmp_path):
    out = tmp_path / "out"
    work = interrupted(plan, reader, out)
    before = sorted((path.name, path.stat().st_size) for path in work.rglob("*"))
    other = make_plan(source_config(reader), Options(mode="ks", modalities=("opt",)))
    with pytest.raises(CheckpointError, match=r"out\.work holds unfinished work of another plan"):
        save(other, reader, out)
    assert sorted((path.name, path.stat().st_size) for path in work.rglob("*")) == before


def test_each_tensor_is_read_once(plan, reader, tmp_path, monkeypatch):
    read: list[str] = []
    tensor = CheckpointReader.tensor
    monkeypatch.setattr(CheckpointReader, "tensor", lambda self, name: (read.append(name), tensor(self, name))[1])
    verified = []
    save(plan, reader, tmp_path / "out", lambda stage, *_: verified.append(len(read)) if stage == "kc" else None)
    names = read[verified[0] :]  # behind the pass that verifies the source
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(needed(plan)) == sorted(read[: verified[0]])


def test_two_at_once_do_not_meet(plan, reader, tmp_path):
    out = tmp_path / "out"
    with (
        Work(out, digest_of(plan, reader, parts_of(plan, reader))),
        pytest.raises(CheckpointError, match="in the hands of another process"),
    ):
        save(plan, reader, out)


def test_workers_make_what_one_process_makes(plan, reader, whole, tmp_path):
    before = multiprocessing.active_children()  # ranks of other tests are forked from one
    save(plan, reader, tmp_path / "out", resources=Resources(device="cpu", workers=2))
    result = CheckpointReader(tmp_path / "out")
    assert result.manifest.files == whole.manifest.files
    assert set(multiprocessing.active_children()) == set(before)


def test_a_worker_that_is_killed_is_reported_and_its_work_continued(plan, reader, tmp_path):
    out = tmp_path / "out"
    before = multiprocessing.active_children()

    def kill(stage: str, done: float, total: float) -> None:
        if stage == "kc" and 0 < done < total:
            for worker in set(multiprocessing.active_children()).difference(before):
                worker.kill()

    with pytest.raises(CheckpointError, match="worker processes was ended from outside"):
        save(plan, reader, out, kill, Resources(device="cpu", workers=2))
    assert not out.exists()
    save(plan, reader, out)
    CheckpointReader(out).verify()


def test_a_full_disk_is_known_before_anything_is_written(plan, reader, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(CheckpointError, match=r"1\.2 MB are needed but 1\.0 kB are free there"):
        save(plan, reader, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_workers_begin_with_their_share_of_threads(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "77")
    environments = list(each(Path.read_text, [Path("/proc/self/environ")] * 2, 2))
    threads = max(1, num_cores() // 2)
    assert all(f"OPENBLAS_NUM_THREADS={threads}\0" in environment for environment in environments)
    assert os.environ["OPENBLAS_NUM_THREADS"] == "77"


def test_where_there_are_no_locks_the_work_goes_on(plan, reader, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    save(plan, reader, tmp_path / "out")
    CheckpointReader(tmp_path / "out").verify()
