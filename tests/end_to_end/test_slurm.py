"""Under a real Slurm: the batch scripts as they are, preemption, failure, and the same run as by any launcher."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.data.build import build
from ringmoe.data.plan import BuildConfig
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures import slurm
from tests.fixtures.folders import content, differences
from tests.fixtures.jobs import BIN, ROOT
from tests.fixtures.launchers import STEPS, arguments, variables
from tests.fixtures.slurm import Cluster
from tests.fixtures.small_run import rows_of, weights_of
from tests.unit.data.conftest import damage, write_scene

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.xdist_group("launchers"),
    pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing())),
]

VARIABLES = variables() | {"PYTHON": sys.executable}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Slurm that tells jobs before it takes their nodes, as they ask for with --signal."""
    with slurm.cluster(VARIABLES, send_user_signal=True) as started:
        yield started


def _submit(cluster: Cluster, folder: Path, script: str, *words: object, options: tuple[str, ...] = ()) -> str:
    """Submits a batch script from the project's root, with its log in ``folder``."""
    path = ROOT / "launcher" / "slurm" / f"{script}.sbatch"
    return cluster.submit(f"--output={folder}/log-%j", *options, path, *words, cwd=ROOT)


def _pretrain(cluster: Cluster, folder: Path, shards: Path, *more: str) -> str:
    """Submits the run: one task on each of two nodes."""
    words = [*arguments(shards, folder / "run"), *more]
    return _submit(cluster, folder, "pretrain", *words, options=("--ntasks-per-node=1",))


def _wait_for_steps(cluster: Cluster, job: str, folder: Path) -> None:
    """Waits until the ranks take their steps."""
    rows = folder / "run" / "metrics.jsonl"
    slurm.until(lambda: rows.exists() or cluster.has_ended(job), 120, lambda: _said(folder) + cluster.logs())
    assert not cluster.has_ended(job), _said(folder)


def _said(folder: Path) -> str:
    """What the job of a folder printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("log-*")))


def test_srun_gives_the_same_run(cluster, whole, shards, tmp_path):
    job = _pretrain(cluster, tmp_path, shards)
    assert cluster.wait(job) == {"COMPLETED"}, _said(tmp_path)
    assert cluster.job(job)["NumNodes"] == "2"
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert weights_of(tmp_path / "run") == weights_of(whole)


@pytest.mark.parametrize("send_user_signal", [True, False], ids=["script is asked", "ranks are asked"])
def test_a_preempted_job_queues_again_and_goes_on_bit_for_bit(send_user_signal, whole, shards, tmp_path):
    with slurm.cluster(VARIABLES, send_user_signal=send_user_signal) as cluster:
        job = _pretrain(cluster, tmp_path, shards)
        _wait_for_steps(cluster, job, tmp_path)
        cluster.preempt(job)
        assert cluster.wait(job) == {"COMPLETED"}, _said(tmp_path)
        assert cluster.job(job)["Restarts"] == "1"
    said = " ".join(_said(tmp_path).split())
    assert ("the cluster wants its nodes back" in said) == send_user_signal
    assert said.count("; the same command continues") == 1
    saved = said.split("asked to stop: saved after step ")[1].split(";")[0]
    assert 1 <= int(saved) < STEPS
    assert f"continuing {tmp_path}/run after step {saved} of {STEPS}" in said
    assert rows_of(tmp_path / "run") == rows_of(whole)
    assert weights_of(tmp_path / "run") == weights_of(whole)


def test_a_job_that_fails_does_not_queue_again(cluster, shards, tmp_path):
    job = _pretrain(cluster, tmp_path, shards / "nowhere")
    assert cluster.wait(job) == {"FAILED"}
    assert cluster.job(job)["Restarts"] == "0"
    assert "should be a folder made by" in _said(tmp_path)
    assert "queueing again" not in _said(tmp_path)


def test_a_job_that_cannot_save_when_asked_does_not_queue_again(cluster, shards, tmp_path):
    full_disk = dataclasses.replace(cluster, prefix=("prlimit", "--fsize=200000"))  # Slurm hands limits on to its jobs
    job = _pretrain(full_disk, tmp_path, shards, "--every.checkpoint", "1000")
    _wait_for_steps(cluster, job, tmp_path)
    cluster.ask("scancel", "--signal=USR1", "--batch", job)  # as at the time limit
    assert cluster.wait(job) == {"FAILED"}
    assert "the cluster wants its nodes back" in _said(tmp_path)
    assert "checkpoint" in _said(tmp_path).lower()
    assert cluster.job(job)["Restarts"] == "0"
    assert "queueing again" not in _said(tmp_path)


def test_a_rank_that_raises_ends_its_step(cluster, tmp_path):
    rank = ROOT / "tests" / "fixtures" / "rank.py"
    options = ("--nodes=1", "--ntasks=2", "--kill-on-bad-exit=1")
    done = cluster.run("srun", *options, sys.executable, rank, "raise", tmp_path, cwd=tmp_path)
    assert done.returncode != 0
    assert "[rank 1] Traceback" in done.stdout
    assert "ValueError: only here" in done.stdout
    for number in range(2):
        assert (tmp_path / f"rank{number}").read_text().split()[:4] == ["slurm", "2", str(number), "3"]


CUT = ("--tile", "16", "--stride", "8", "--holdout", "0.25", "--tiles-per-shard", "40")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Scenes of three modalities; one in the middle is broken."""
    folder = tmp_path_factory.mktemp("scenes")
    for number, key in enumerate(("opt", "opt", "opt", "ms", "sar_l2")):
        write_scene(folder / key / f"{number}.tif", key, seed=number, height=160, width=160)
    damage(folder / "opt/1.tif")
    return folder


@pytest.fixture(scope="module")
def cut(scenes, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of them."""
    tiling = TilingConfig(tile=16, stride=8, holdout=0.25)
    out = tmp_path_factory.mktemp("cut") / "shards"
    manifest = build([scenes], out, BuildConfig(tiling=tiling, tiles_per_shard=40)).manifest
    assert len(manifest.quarantined) == 1
    return content(out)


def _array(cluster: Cluster, folder: Path, scenes: Path, numbers: str, *more: str) -> str:
    """Submits the array of a build."""
    options = (f"--array={numbers}", "--cpus-per-task=1", *more)
    return _submit(cluster, folder, "shards", scenes, folder / "out", *CUT, options=options)


def test_an_array_gives_the_bytes_of_one_process(cluster, scenes, cut, tmp_path):
    assert cluster.wait(_array(cluster, tmp_path, scenes, "0-2")) == {"COMPLETED"}, _said(tmp_path)
    assert not differences(tmp_path / "out", cut)
    assert "Whoever finishes last publishes" in _said(tmp_path)
    assert cluster.wait(_array(cluster, tmp_path, scenes, "4-8:2")) == {"COMPLETED"}
    assert " ".join(_said(tmp_path).split()).count("it was built before from the same scenes and settings") == 3
    assert cluster.wait(_array(cluster, tmp_path, scenes, "0,2,3")) == {"FAILED"}
    assert "the numbers of an array may have no gaps" in _said(tmp_path)


def test_tasks_of_a_step_give_the_bytes_of_one_process(cluster, scenes, cut, tmp_path):
    words = (BIN / "ringmoe", "shards", "build", scenes, tmp_path / "out", *CUT)
    done = cluster.run("srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", *words, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout
    assert not differences(tmp_path / "out", cut)


def test_an_array_whose_task_died_is_submitted_again(cluster, scenes, cut, tmp_path):
    job = _array(cluster, tmp_path, scenes, "0-2")
    work = tmp_path / "out" / ".building"
    slurm.until(lambda: len(list(work.glob("*.tar"))) > 3, 60, lambda: _said(tmp_path) + cluster.logs())
    cluster.ask("scancel", "--signal=KILL", "--full", f"{job}_1")
    assert "COMPLETED" in cluster.wait(job)
    assert not (tmp_path / "out" / "manifest.json").exists(), _said(tmp_path)
    assert cluster.wait(_array(cluster, tmp_path, scenes, "1")) == {"COMPLETED"}, _said(tmp_path)
    assert not differences(tmp_path / "out", cut)


def test_a_batch_job_makes_the_smaller_model(cluster, whole, tmp_path):
    job = _submit(cluster, tmp_path, "prune", whole, tmp_path / "small", "--mode", "kc", "--modality", "opt")
    assert cluster.wait(job) == {"COMPLETED"}, _said(tmp_path)
    assert open_checkpoint(tmp_path / "small").config["model"]["modalities"] == ["opt"]
