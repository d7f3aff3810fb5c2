"""Under a real Slurm: the batch scripts as they are, preemption, failure, and the same run as by any launcher."""

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.data.manifest import Manifest
from tests.fixtures import slurm
from tests.fixtures.launchers import ROOT, STEPS, arguments, variables
from tests.fixtures.slurm import Cluster
from tests.fixtures.small_run import rows_of, weights_of

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


def test_an_array_cuts_each_delivery_once(cluster, shards, tmp_path):
    deliveries = tmp_path / "scenes"
    scenes = sorted((shards.parent / "scenes").glob("*.tif"))[:3]
    for scene in scenes:
        (deliveries / scene.stem).mkdir(parents=True)
        shutil.copy(scene, deliveries / scene.stem)
    out = tmp_path / "out"
    words = (deliveries, out, "--tile", "32", "--stride", "16")
    job = _submit(cluster, tmp_path, "shards", *words, options=("--array=0-3", "--cpus-per-task=1"))
    assert cluster.wait(job) == {"COMPLETED"}, _said(tmp_path)
    parts = [Manifest.open(path) for path in sorted(out.iterdir())]
    assert [part.root.name for part in parts] == ["part-0000", "part-0001", "part-0002"]
    assert [key for part in parts for key in part.modalities] == [scene.stem for scene in scenes]
    assert _said(tmp_path).count("nothing to do") == 1
    one = _submit(cluster, tmp_path, "shards", *words, options=("--array=1",))
    assert cluster.wait(one) == {"FAILED"}
    assert "error: submit with --array=0-N" in _said(tmp_path)


def test_a_batch_job_makes_the_smaller_model(cluster, whole, tmp_path):
    job = _submit(cluster, tmp_path, "prune", whole, tmp_path / "small", "--mode", "kc", "--modality", "opt")
    assert cluster.wait(job) == {"COMPLETED"}, _said(tmp_path)
    assert open_checkpoint(tmp_path / "small").config["model"]["modalities"] == ["opt"]
