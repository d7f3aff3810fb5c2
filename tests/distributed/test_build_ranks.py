"""``mpirun -n N ringmoe shards build``: the same bytes for any N, after a kill, and with a broken scene inside."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ringmoe.data.build import build
from ringmoe.data.layout import BUILDING
from ringmoe.data.plan import BuildConfig
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.folders import content, differences
from tests.fixtures.jobs import BIN, started
from tests.unit.data.conftest import damage, write_scene

pytestmark = pytest.mark.distributed

CONFIG = BuildConfig(tiling=TilingConfig(tile=16, stride=8, holdout=0.25), tiles_per_shard=100)
OPTIONS = ("--tile", "16", "--stride", "8", "--holdout", "0.25", "--tiles-per-shard", "100")
MPIRUN = (BIN / "mpirun", "--allow-run-as-root", "--oversubscribe")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Scenes of all modalities; the second of three optical ones is broken."""
    folder = tmp_path_factory.mktemp("scenes")
    for number, key in enumerate(("opt", "opt", "opt", "ms", "sar_l1", "sar_l2")):
        write_scene(folder / key / f"{number}.tif", key, seed=number, height=200, width=200)
    damage(folder / "opt/1.tif")
    return folder


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """What one process makes of them."""
    manifest = build([scenes], tmp_path_factory.mktemp("whole") / "shards", CONFIG).manifest
    assert [scene.name for scene in manifest.quarantined] == [f"{scenes.name}/opt/1.tif"]
    return content(manifest.root)


def _command(scenes: Path, out: Path) -> tuple[object, ...]:
    return BIN / "ringmoe", "shards", "build", scenes, out, *OPTIONS


def _run(folder: Path, num: int, scenes: Path, out: Path, *options: str) -> str:
    """Builds with ``num`` ranks to the end; what they printed."""
    with started((*MPIRUN, "-n", num, *_command(scenes, out), *options), folder) as job:
        code = job.wait(timeout=120)
    printed = (folder / "output").read_text()
    assert code == 0, printed
    return printed


def _ranks(process: int) -> list[int]:
    """Processes of the ranks under an mpirun, in the order of their start."""
    words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    if os.fsencode(BIN / "ringmoe") in words[:2]:  # the words behind the interpreter, not behind mpirun
        return [process]
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return sorted(rank for child in children for rank in _ranks(int(child)))


@pytest.mark.parametrize("num", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_same_bytes(num, scenes, whole, tmp_path):
    out = tmp_path / "shards"
    printed = _run(tmp_path, num, scenes, out)
    assert not differences(out, whole)
    assert printed.count("groups of tiles that share their statistics") == 1  # one rank speaks for all
    assert "1 scene quarantined" in printed


def test_ranks_find_near_duplicates_together(scenes, tmp_path):
    """The second delivery of a broken scene stays, that of a sound one goes."""
    folder = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    for number, copy in ((1, 6), (2, 7)):
        write_scene(folder / f"opt/{copy}.tif", "opt", seed=number, height=200, width=200)
    config = replace(CONFIG, quality=QualityConfig(drop_duplicates=True))
    manifest = build([folder], tmp_path / "whole", config).manifest
    assert {*manifest.open_index("opt", "train")["scene"].tolist()} == {0, 2, 3}
    _run(tmp_path, 2, folder, tmp_path / "shards", "--drop-duplicates")
    assert not differences(tmp_path / "shards", manifest.root)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_job_and_the_next_one_continues(victim, scenes, whole, tmp_path):
    out = tmp_path / "shards"
    with started((*MPIRUN, "-n", 2, *_command(scenes, out)), tmp_path) as job:
        deadline = time.monotonic() + 150
        while len(list(out.glob(f"{BUILDING}/*.tar"))) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(_ranks(job.pid)[victim], signal.SIGKILL)
        assert job.wait(timeout=120) != 0
    assert not (out / "manifest.json").exists()
    printed = _run(tmp_path, 2, scenes, out)
    assert "units were finished before" in printed
    assert not differences(out, whole)


def test_a_rank_that_fails_ends_the_job_with_its_message(scenes, whole, tmp_path):
    out = tmp_path / "shards"
    command = _command(scenes, out)
    # the second rank can write no file of more than 10 kB, which fails like a full disk does
    words = (*MPIRUN, "-n", 1, *command, ":", "-n", 1, "prlimit", "--fsize=10000", *command)
    with started(words, tmp_path) as job:
        assert job.wait(timeout=120) != 0
    assert "File too large" in (tmp_path / "output").read_text()
    assert "Traceback" not in (tmp_path / "output").read_text()
    build([scenes], out, CONFIG)
    assert not differences(out, whole)
