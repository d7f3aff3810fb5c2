import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringmoe import modality as registry
from ringmoe.data.build import build
from ringmoe.data.durable import DurableFile
from ringmoe.data.layout import BUILDING
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig, make_plan
from ringmoe.data.rounds import BuildProgress
from ringmoe.errors import ConfigError, SceneError, ShardError
from ringmoe.modality import ModalitySpec
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import iter_tiles
from ringmoe.raster.recognise import recognise
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff
from tests.fixtures.folders import differences

from .conftest import SMALL, damage, write_scene


def _in_child(function, *arguments):
    """Runs a function in a forked process; returns its exit code, negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join(60)
    return child.exitcode


def test_every_window_is_accounted_for(tmp_path):
    write_scene(tmp_path / "in/a.tif", "opt", height=80, width=80)
    write_scene(tmp_path / "in/b.tif", "opt", seed=1, nodata=0)
    write_scene(tmp_path / "in/c.tif", "ms", seed=2, dtype="uint16")
    config = replace(SMALL, quality=QualityConfig(max_black=0.0))
    report = build([tmp_path / "in"], tmp_path / "out", config)
    expected: dict[str, Counter[str]] = {}
    for scene in report.catalogue.scenes:
        for found in iter_tiles(scene, config.tiling, config.quality):
            expected.setdefault(scene.modality, Counter())[found.reason or str(found.split)] += 1
    for key, entry in report.manifest.modalities.items():
        kept = {split: samples.num_samples for split, samples in entry.splits.items()}
        assert kept | entry.dropped == expected[key]
        assert entry.candidates == expected[key].total()


def test_units_hold_whole_rows_up_to_the_limit(archive):
    catalogue = recognise([archive], tile=16)
    plan = make_plan(catalogue, SMALL)
    rows: dict[tuple[str, str], list[int]] = {}
    for unit in plan.units:
        assert unit.num_windows <= 40
        for span in unit.spans:
            rows.setdefault((unit.modality, span.scene.name), []).extend(span.rows)
    assert all(found == list(range(7)) for found in rows.values())
    assert len(rows) == 5
    # a row that is longer than a shard may be goes into one all the same
    assert {unit.num_windows for unit in make_plan(catalogue, replace(SMALL, tiles_per_shard=1)).units} == {8}


def test_any_number_of_workers_gives_the_same_bytes(archive, shards, tmp_path):
    told = []
    report = build([archive], tmp_path / "shards", SMALL, workers=2, progress=told.append)
    assert not differences(tmp_path / "shards", shards.root)
    assert told[0] == BuildProgress(0, 280)
    assert told[-1] == BuildProgress(280, 280)
    assert report.num_units == len(told) - 1 > 5


def test_a_second_run_reuses_and_a_different_one_is_refused(archive, own_shards, tmp_path):
    root = own_shards()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    report = build([archive], root, SMALL)
    assert report.num_reused == report.num_units
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    other = replace(SMALL, tiling=TilingConfig(tile=16, stride=4, holdout=0.25))
    with pytest.raises(ShardError, match=r"tiling\.stride was 8 and now is 4\. Choose another folder"):
        build([archive], root, other)
    moved = Path(shutil.copytree(archive, tmp_path / archive.name))
    assert build([moved], root, SMALL).num_reused == report.num_units
    write_scene(moved / "opt/scene.0.tif", "opt", seed=9)
    with pytest.raises(ShardError, match=rf"1 opt scenes have changed \({archive.name}/opt/scene\.0\.tif\)"):
        build([moved], root, SMALL)
    (moved / "ms/scene.2.tif").unlink()
    with pytest.raises(ShardError, match="1 ms scenes are gone"):
        build([moved], root, SMALL)
    (root / "opt/train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"opt/train-000000\.tar is missing"):
        build([archive], root, SMALL)


def _build_and_die(archive, out, number, after):
    """Builds, and is killed outright just before or after it commits file ``number``."""
    commit, count = DurableFile.commit, 0

    def deadly(file):
        nonlocal count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(file)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    DurableFile.commit = deadly
    build([archive], out, SMALL)


# plan, then units of up to six files, three files of each modality, and the manifest: 44 in all
@pytest.mark.parametrize(
    ("number", "after"),
    [(1, True), (2, True), (4, False), (6, False), (20, True), (33, True), (40, False), (44, False), (44, True)],
)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(archive, shards, tmp_path, number, after):
    out = tmp_path / "out"
    assert _in_child(_build_and_die, archive, out, number, after) == -signal.SIGKILL
    if (number, after) != (44, True):
        with pytest.raises(ShardError, match="unfinished build"):
            Manifest.open(out)
    build([archive], out, SMALL)
    assert not differences(out, shards.root)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return children + [other for child in children for other in _descendants(child)]


def test_workers_end_with_a_parent_that_is_killed(archive, shards, tmp_path):
    script = (
        "import sys; from pathlib import Path; from ringmoe.data.build import build\n"
        "from ringmoe.data.plan import BuildConfig; from ringmoe.raster.tiling import TilingConfig\n"
        "if __name__ == '__main__':\n"
        "    config = BuildConfig(tiling=TilingConfig(tile=16, stride=8, holdout=0.25), tiles_per_shard=40)\n"
        "    build([Path(sys.argv[1])], Path(sys.argv[2]), config, workers=2)\n"
    )
    (tmp_path / "main.py").write_text(script)
    out = tmp_path / "shards"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py", archive, out], env=environment)
    while not list(out.glob(f"{BUILDING}/*.tar")) and parent.poll() is None:
        time.sleep(0.005)
    children = _descendants(parent.pid)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2
    assert not any(map(_alive, children))
    build([archive], out, SMALL)
    assert not differences(out, shards.root)


def test_a_broken_scene_of_a_folder_is_quarantined_whole(archive, tmp_path):
    folder = Path(shutil.copytree(archive, tmp_path / "in"))
    damage(folder / "opt/scene.1.tif")
    out = tmp_path / "out"
    report = build([folder], out, SMALL)
    (broken,) = report.manifest.quarantined
    assert broken.name == "in/opt/scene.1.tif"
    assert "cannot be read" in broken.message
    entry = report.manifest.modalities["opt"]
    index = report.manifest.open_index("opt", "train")
    assert {entry.scenes[number].name for number in index["scene"]} == {"in/opt/scene.0.tif"}
    assert entry.candidates == 7 * 8
    # the same comes out of a run that is killed after it has found the scene broken
    again = tmp_path / "again"
    for number in (8, 16):
        assert _in_child(_build_and_die, folder, again, number, True) == -signal.SIGKILL
    build([folder], again, SMALL)
    assert not differences(again, out)


@pytest.mark.parametrize("with_others", [False, True])
def test_a_broken_scene_that_was_named_ends_the_build(archive, tmp_path, with_others):
    path = write_scene(tmp_path / "in/x.tif", "ms")
    damage(path)
    out = tmp_path / "out"
    with pytest.raises(SceneError, match=r"in/x\.tif: .*cannot be read"):
        build([path, archive] if with_others else [path], out, SMALL)
    assert not out.exists()
    if not with_others:
        with pytest.raises(SceneError, match=r"not a single tile is left: .* is broken"):
            build([path.parent], out, SMALL)
        assert not out.exists()


def test_scenes_without_a_good_tile_end_the_build(tmp_path):
    black = np.zeros((3, 64, 64), dtype=np.uint8)
    write_geotiff(tmp_path / "in/x.tif", black, crs=None, transform=None, descriptions=("R", "G", "B"), tags={})
    with pytest.raises(SceneError, match="42 windows dropped as black_border; 7 windows dropped as split_border"):
        build([tmp_path / "in"], tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="no usable scene"):
        build([tmp_path / "empty"], tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def _build_on_a_full_disk(archive, out, most_bytes):
    """Builds where no file can grow beyond a limit, which fails like a full disk does; says what was raised."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        build([archive], out, SMALL)
    except ShardError as error:
        if "no space left" in str(error) and f"{out}" in str(error):
            kept = "units are finished and kept" in str(error)
            os._exit(3 if kept else 4)
    os._exit(5)


def test_a_full_disk_keeps_what_is_finished_and_nothing_half_written(archive, shards, tmp_path):
    out = tmp_path / "out"
    # shards of opt and ms fit, one of sar_l1 does not
    assert _in_child(_build_on_a_full_disk, archive, out, 250_000) == 3
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.partial"))
    assert list(out.glob(f"{BUILDING}/opt-*.tar"))
    assert build([archive], out, SMALL).num_reused >= 3
    assert not differences(out, shards.root)
    assert _in_child(_build_on_a_full_disk, archive, tmp_path / "other", 20_000) == 4
    assert not (tmp_path / "other").exists()


def test_folders_that_are_in_use_are_refused(archive, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ShardError, match="is not empty and holds no shards"):
        build([archive], tmp_path, SMALL)

    def meanwhile(progress):
        if progress.done == 0:
            with pytest.raises(ShardError, match="another build is at work"):
                build([archive], tmp_path / "out", SMALL)

    build([archive], tmp_path / "out", SMALL, progress=meanwhile)


def test_an_unfinished_build_is_not_continued_with_other_settings(archive, tmp_path):
    assert _in_child(_build_and_die, archive, tmp_path / "out", 12, False) == -signal.SIGKILL
    with pytest.raises(ShardError, match=r"unfinished build.*tiles_per_shard was 40 and now is 41"):
        build([archive], tmp_path / "out", replace(SMALL, tiles_per_shard=41))
    build([archive], tmp_path / "out", SMALL)
    with pytest.raises(ConfigError, match="tiles_per_shard"):
        BuildConfig(tiles_per_shard=0)


def test_a_further_modality_is_one_declaration(tmp_path):
    registry.register(
        ModalitySpec(
            key="warm_test",
            title="thermal",
            bands=("T1", "T2"),
            dtypes=("int16",),
            units=("dn",),
            wavelengths_nm=((10000, 11000), (11000, 12000)),
        )
    )
    for number in range(2):
        write_scene(tmp_path / f"in/{number}.tif", "warm_test", seed=number)
    report = build([tmp_path / "in"], tmp_path / "out", SMALL, workers=2)
    assert report.manifest.modalities["warm_test"].num_kept == 96
