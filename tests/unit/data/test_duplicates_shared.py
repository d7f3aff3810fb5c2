"""Near-duplicates where nobody sees the whole build: shares of it; and among samples of grouped scenes."""

import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from ringmoe.data import duplicates
from ringmoe.data.build import BuildReport, ShareReport, build, build_share
from ringmoe.data.layout import BUILDING
from ringmoe.data.manifest import Manifest
from ringmoe.data.places import PlaceManifest, PlaceReader
from ringmoe.data.rounds import BuildProgress, Share
from ringmoe.errors import SceneError
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.rules.hashes import earlier_alike
from tests.fixtures.folders import content, differences
from tests.fixtures.places import write_member
from tests.fixtures.shares import at_once

from .conftest import SMALL, damage, write_scene

CONFIG = replace(SMALL, quality=QualityConfig(drop_duplicates=True))
GROUPED = replace(CONFIG, grouped=True)
WINDOWS = 49  # of a place; one row of them lies across the border of the hold-out
KEPT = 42


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deliveries of two grounds; the first of the first ground is broken, so the second one stays and the third not."""
    root = tmp_path_factory.mktemp("shared") / "in"
    for name, seed in (("a", 1), ("b", 1), ("c", 1), ("d", 2), ("e", 2)):
        write_scene(root / f"{name}.tif", "opt", seed=seed)
    damage(root / "a.tif")
    return root


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    manifest = build([archive], tmp_path_factory.mktemp("whole") / "out", CONFIG).manifest
    assert [scene.name for scene in manifest.quarantined] == ["in/a.tif"]
    entry = manifest.modalities["opt"]
    assert {*manifest.open_index("opt", "train")["scene"].tolist()} == {1, 3}
    assert entry.dropped["near_duplicate"] == 2 * 6 * 8
    return content(manifest.root)


def test_shares_one_after_the_other_give_the_bytes_of_one_process(
    archive: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first finds the hashes of all and compares them, as nobody else does; the others only build."""
    out = tmp_path / "out"
    compared: list[int] = []

    def counted(*tiles: Any) -> Any:
        compared.append(len(tiles[0]))
        return earlier_alike(*tiles)

    monkeypatch.setattr(duplicates, "earlier_alike", counted)
    for number in (2, 0):
        told: list[BuildProgress] = []
        assert isinstance(build_share([archive], out, CONFIG, Share(number, 3), progress=told.append), ShareReport)
        assert told[-1].done == told[-1].total == told[0].total
    hashed = {path: path.stat().st_mtime_ns for path in out.glob(f"{BUILDING}/*-hashes*.npy")}
    last = build_share([archive], out, CONFIG, Share(1, 3), workers=2, progress=lambda _: _check_unchanged(hashed))
    assert isinstance(last, BuildReport)
    assert not differences(out, whole)
    assert len(compared) == 1  # all are of one kind


def _check_unchanged(times: dict[Path, int]) -> None:
    assert times
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.exists())


@pytest.mark.parametrize("die_at", [(0, 0, 0), (2, 0, 0), (6, 9, 12), (15, 17, 22)])
def test_shares_at_once_and_killed_anywhere(
    archive: Path, whole: dict[str, bytes], tmp_path: Path, die_at: tuple[int, int, int]
):
    out = tmp_path / "out"
    assert set(at_once(archive, out, CONFIG, die_at)) <= {0, -signal.SIGKILL}
    if any(die_at):
        reports = [build_share([archive], out, CONFIG, Share(number, 2)) for number in range(2)]
        assert isinstance(reports[-1], BuildReport)
    assert not differences(out, whole)


def test_a_named_broken_scene_ends_every_share_and_the_last_one_takes_the_folder_away(archive: Path, tmp_path: Path):
    out = tmp_path / "out"

    def meanwhile(at: BuildProgress) -> None:
        if at.done == 0:
            with pytest.raises(SceneError, match=r"a\.tif: .*cannot be read"):
                build_share([archive / "a.tif", archive], out, CONFIG, Share(1, 2))
            assert out.exists()  # for this one is at work in it

    with pytest.raises(SceneError, match=r"a\.tif: .*cannot be read"):
        build_share([archive / "a.tif", archive], out, CONFIG, Share(0, 2), progress=meanwhile)
    assert not out.exists()


def _deliver(source: Path, target: Path, east: float) -> None:
    """The pixels of a scene once more, brighter, on other coordinates: a delivery on a grid of its own."""
    shutil.copytree(source, target)
    for path in target.glob("*.tif"):
        with rasterio.open(path, "r+") as dataset:
            a, b, _, d, e, f = tuple(dataset.transform)[:6]
            dataset.transform = rasterio.Affine(a, b, east, d, e, f)
            dataset.write((dataset.read().astype(float) * 1.01).astype(dataset.dtypes[0]))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three places: one, its whole second delivery, and the same image beside a radar image of another day."""
    root = tmp_path_factory.mktemp("places") / "in"
    for name, east, days in (("p", 5e5, (3, 4)), ("r", 7e5, (3, 9))):
        for key, day in zip(("ms", "sar_l2"), days, strict=True):
            write_member(root / name / f"{key}.{day}.tif", key, east=east, date=f"2021-05-{day:02d}T10:20:30")
    _deliver(root / "p", root / "q", 6e5)
    with rasterio.open(root / "p/ms.3.tif") as first, rasterio.open(root / "r/ms.3.tif", "r+") as other:
        other.write(first.read())
    return root


def test_a_sample_is_dropped_where_nothing_in_it_is_new(places: Path, tmp_path: Path):
    manifest = build([places], tmp_path / "out", GROUPED).manifest
    assert isinstance(manifest, PlaceManifest)
    kept = Counter({Path(place.name).parent.name: place.kept for place in manifest.grouped.places})
    assert kept == {"p": KEPT, "q": 0, "r": KEPT}
    dropped = {Path(place.name).parent.name: place.dropped for place in manifest.grouped.places}
    assert dropped["q"] == {"near_duplicate": KEPT, "split_border": WINDOWS - KEPT}
    assert dropped["p"] == dropped["r"] == {"split_border": WINDOWS - KEPT}
    assert {Path(sample.place).parent.name for sample in PlaceReader(manifest, "train")} == {"p", "r"}


def test_samples_that_are_not_whole_are_held_against_their_like(places: Path, tmp_path: Path):
    """Where the second delivery does without its radar image, it is compared with samples of the image alone: none."""
    folder = Path(shutil.copytree(places, tmp_path / "in"))
    with rasterio.open(folder / "q/sar_l2.4.tif", "r+") as dataset:
        dataset.write(np.zeros_like(dataset.read()))
    manifest = build([folder], tmp_path / "out", replace(GROUPED, min_members=1)).manifest
    assert isinstance(manifest, PlaceManifest)
    assert [place.kept for place in manifest.grouped.places] == [KEPT] * 3


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_place_whose_model_is_broken_is_kept_by_shares_as_by_one(places: Path, tmp_path: Path, when: str):
    """A scene of the first delivery is broken from the start, or only once the hashes are there."""
    folder = Path(shutil.copytree(places, tmp_path / "in"))

    def meanwhile(at: BuildProgress) -> None:
        if when == "between" and at.done == at.total // 2:
            damage(folder / "p/ms.3.tif")

    if when == "before":
        damage(folder / "p/ms.3.tif")
    manifest: Manifest = build([folder], tmp_path / "whole", GROUPED, progress=meanwhile).manifest
    assert [scene.name for scene in manifest.quarantined] == ["in/p/ms.3.tif"]
    assert isinstance(manifest, PlaceManifest)
    assert [place.kept for place in manifest.grouped.places] == [0, KEPT, KEPT]
    if when == "before":
        for number in (1, 0):
            report = build_share([folder], tmp_path / "shared", GROUPED, Share(number, 2), workers=1 + number)
        assert isinstance(report, BuildReport)
        assert not differences(tmp_path / "shared", tmp_path / "whole")
