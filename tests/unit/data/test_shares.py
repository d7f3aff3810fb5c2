"""Shares of a build that never meet: whoever is last publishes, and the bytes are those of one process."""

import errno
import fcntl
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import ringmoe.data.build as building
from ringmoe.cli import shards as cli
from ringmoe.data.build import BuildReport, ShareReport, build, build_share
from ringmoe.data.layout import BUILDING
from ringmoe.data.plan import make_plan
from ringmoe.data.rounds import BuildProgress, Share
from ringmoe.data.workfolder import work_folder
from ringmoe.errors import ConfigError, SceneError, ShardError
from ringmoe.raster.recognise import recognise
from tests.fixtures.folders import content, differences
from tests.fixtures.places import write_archive
from tests.fixtures.shares import at_once

from .conftest import SMALL, damage


@pytest.fixture
def broken(archive, tmp_path):
    """The archive with a broken scene in its middle, and what one process makes of it."""
    folder = Path(shutil.copytree(archive, tmp_path / "in"))
    damage(folder / "opt/scene.1.tif")
    root = build([folder], tmp_path / "whole", SMALL).manifest.root
    assert (folder / "opt/scene.1.tif").exists()
    return folder, content(root)


def test_the_last_share_publishes_and_quarantines_like_one_process(broken, tmp_path):
    folder, whole = broken
    out = tmp_path / "out"
    told: list[BuildProgress] = []
    left = []
    for number in (2, 0):
        report = build_share([folder], out, SMALL, Share(number, 3), progress=told.append)
        assert isinstance(report, ShareReport)
        left.append(report.num_left)
        assert told[-1].done == told[-1].total < 280
    assert left[0] > left[1] > 0
    last = build_share([folder], out, SMALL, Share(1, 3), workers=2)
    assert isinstance(last, BuildReport)
    assert [scene.name for scene in last.manifest.quarantined] == ["in/opt/scene.1.tif"]
    assert last.published
    assert not differences(out, whole)
    again = build_share([folder], out, SMALL, Share(0, 3))
    assert isinstance(again, BuildReport)
    assert again.num_reused == again.num_units
    assert not again.published


def test_shares_of_places_give_the_bytes_of_one_process(tmp_path):
    archive = write_archive(tmp_path / "in")
    config = replace(SMALL, grouped=True)
    whole = build([archive], tmp_path / "whole", config).manifest.root
    for number in (1, 0):
        report = build_share([archive], tmp_path / "out", config, Share(number, 2))
    assert isinstance(report, BuildReport)
    assert not differences(tmp_path / "out", whole)


def test_shares_at_once_publish_once(broken, tmp_path):
    folder, whole = broken
    for turn in range(3):
        assert at_once(folder, tmp_path / f"out{turn}", SMALL) == [0, 0, 0]
        assert not differences(tmp_path / f"out{turn}", whole)


@pytest.mark.parametrize(("die_at", "count"), [((1, 0, 0), 1), ((0, 5, 9), 2), ((14, 13, 12), 1), ((20, 22, 24), 2)])
def test_shares_that_were_killed_are_built_again_in_any_division(broken, tmp_path, die_at, count):
    folder, whole = broken
    out = tmp_path / "out"
    codes = at_once(folder, out, SMALL, die_at)
    assert set(codes) <= {0, -signal.SIGKILL}
    reports = [build_share([folder], out, SMALL, Share(number, count)) for number in range(count)]
    assert isinstance(reports[-1], BuildReport)
    assert not differences(out, whole)


@pytest.fixture
def _no_locks(monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("_no_locks")
def test_without_locks_what_is_done_twice_is_the_same(broken, tmp_path):
    folder, whole = broken
    for turn in range(3):
        assert at_once(folder, tmp_path / f"out{turn}", SMALL) == [0, 0, 0]
        again = build_share([folder], tmp_path / f"out{turn}", SMALL, Share(0, 1))
        assert isinstance(again, BuildReport)
        assert not differences(tmp_path / f"out{turn}", whole)


def test_a_share_that_comes_when_another_has_published_is_done(archive, shards, tmp_path):
    out = tmp_path / "out"

    def meanwhile(progress):
        if progress.done == 0 and not (out / "manifest.json").exists():
            assert isinstance(build_share([archive], out, SMALL, Share(0, 1)), BuildReport)

    report = build_share([archive], out, SMALL, Share(0, 2), progress=meanwhile)
    assert isinstance(report, BuildReport)
    assert report.manifest.root == out
    shutil.rmtree(out / BUILDING, ignore_errors=True)
    assert not differences(out, shards.root)


def test_an_array_is_published_however_its_tasks_meet(archive, shards, tmp_path, monkeypatch):
    """The last share runs whole while the first is about to leave, for it has seen that units are missing."""
    out, look, reports = tmp_path / "out", building._finished, []

    def look_and_wait(plan, folder):
        found = look(plan, folder)
        if (out / BUILDING / "share-0-of-2").exists() and not reports:
            reports.append(None)
            reports.append(build_share([archive], out, SMALL, Share(1, 2)))
        return found

    monkeypatch.setattr(building, "_finished", look_and_wait)
    first = build_share([archive], out, SMALL, Share(0, 2))
    assert isinstance(first, ShareReport)
    assert first.num_left > 0
    assert isinstance(reports[1], BuildReport)
    assert not differences(out, shards.root)


def test_shares_that_begin_at_once_all_get_the_folder(archive, tmp_path):
    """None takes the folder that another is just making for one that holds other things."""
    plan = make_plan(recognise([archive], tile=SMALL.tiling.tile), SMALL)

    def enter(out, barrier):
        barrier.wait(60)
        with work_folder(out, plan, shared=True) as work:
            return work

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for turn in range(100):
                out, barrier = tmp_path / f"out{turn}", threading.Barrier(4)
                entered = [pool.submit(enter, out, barrier) for _ in range(4)]
                assert [each.result() for each in entered] == [out / BUILDING] * 4
    finally:
        sys.setswitchinterval(interval)


def test_a_build_and_shares_do_not_mix(archive, tmp_path):
    out = tmp_path / "out"

    def meanwhile(progress):
        if progress.done == 0:
            with pytest.raises(ShardError, match="another build is at work"):
                build([archive], out, SMALL)

    assert isinstance(build_share([archive], out, SMALL, Share(0, 2), progress=meanwhile), ShareReport)
    # what shares have left, a plain build finishes
    assert 0 < build([archive], out, SMALL).num_reused < 20


def test_a_scene_that_was_named_ends_the_last_share(archive, tmp_path):
    folder = Path(shutil.copytree(archive, tmp_path / "in"))
    path = folder / "ms/scene.2.tif"
    damage(path)
    out = tmp_path / "out"
    assert isinstance(build_share([path, archive], out, SMALL, Share(0, 2)), ShareReport)
    with pytest.raises(SceneError, match=r"ms/scene\.2\.tif: .*cannot be read"):
        build_share([path, archive], out, SMALL, Share(1, 2))
    assert not out.exists()


def _fail_in_work_folder(archive, out, *, shared, meanwhile=lambda work: None):
    def fail():
        plan = make_plan(recognise([archive], tile=SMALL.tiling.tile), SMALL)
        with work_folder(out, plan, shared=shared) as work:
            meanwhile(work)
            raise SceneError("a scene is broken")

    with pytest.raises(SceneError, match="a scene is broken"):
        fail()


def test_two_shares_may_find_that_a_named_scene_is_broken(archive, tmp_path):
    """The other has taken the folder away."""
    _fail_in_work_folder(archive, tmp_path / "out", shared=True, meanwhile=shutil.rmtree)


@pytest.mark.usefixtures("_no_locks")
def test_without_locks_a_share_that_fails_leaves_the_folder_to_others(archive, tmp_path):
    out = tmp_path / "out"
    _fail_in_work_folder(archive, out, shared=True)
    assert (out / BUILDING / "plan.json").exists()
    _fail_in_work_folder(archive, out, shared=False)
    assert not out.exists()


def test_a_share_that_only_publishes_does_not_say_that_it_was_built_before(archive, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    options = cli.ShardsBuild(paths=(archive, tmp_path / "out"), share="0/1", **vars(SMALL))
    with monkeypatch.context() as patched:
        patched.setattr(building, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            cli.build(options)
    for expected, other in (("continued: ", "reused"), ("reused", "continued: ")):
        capsys.readouterr()
        cli.build(options)
        told = capsys.readouterr().out
        assert expected in told
        assert other not in told


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/3", "1/", "/3", "1/2/3"])
def test_a_share_is_a_number_of_many(text):
    with pytest.raises(ConfigError, match="like 0/16 to 15/16"):
        Share.parse(text)
    assert Share.parse("3/16") == Share(3, 16)


@pytest.mark.parametrize("num_units", [1, 7, 31, 32, 200, 5_000])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_shares_are_runs_and_take_each_unit_once(num_units, count):
    units = tuple(range(num_units))
    shares = [list(Share(number, count).of(units)) for number in range(count)]
    assert sorted(unit for share in shares for unit in share) == list(units)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * 8
    if num_units >= 16 * count:  # enough for all: what follows each other stays together
        assert shares[0][:8] == list(units[:8])
    elif num_units >= count:
        assert min(sizes) > 0
