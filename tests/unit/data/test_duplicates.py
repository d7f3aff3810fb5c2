"""Near-duplicates: the same ground delivered twice is dropped once, and a build with this pass is a build like any."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from ringmoe.batch import Tile, TileRecord
from ringmoe.data.build import build
from ringmoe.data.duplicates import hash_of
from ringmoe.data.durable import DurableFile
from ringmoe.data.layout import BUILDING
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig
from ringmoe.data.rounds import BuildProgress
from ringmoe.errors import ShardError
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.rules.hashes import NEAR, earlier_alike, picture_hash
from tests.fixtures.child import exit_code_of, limit_files
from tests.fixtures.folders import differences
from tests.fixtures.products.sentinel1 import write_grd

from .conftest import SMALL, damage, write_scene

CONFIG = replace(SMALL, quality=QualityConfig(drop_duplicates=True))
WINDOWS = 7 * 8  # of a scene; one row lies across the border of the hold-out
KEPT = 6 * 8


def _deliver(path: Path, key: str, seed: int, acquired: str | None, *, gain: float = 1.0) -> Path:
    """A scene, taken at some time; with a gain, as a reprocessing would give it."""
    write_scene(path, key, seed=seed)
    with rasterio.open(path, "r+") as dataset:
        dataset.write((dataset.read() * gain).astype(dataset.dtypes[0]))
        if acquired is not None:
            dataset.update_tags(ACQUIRED=acquired)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, its reprocessing, the same picture at another time, and others."""
    root = tmp_path_factory.mktemp("twice") / "in"
    _deliver(root / "a.tif", "opt", 1, "2021-05-01T10:00:03")
    _deliver(root / "b.tif", "opt", 1, "2021-05-01T10:00:41", gain=1.25)
    _deliver(root / "c.tif", "opt", 1, "2021-05-06T10:00:03")
    _deliver(root / "d.tif", "opt", 2, "2021-05-01T10:00:03")
    _deliver(root / "e.tif", "sar_l1", 3, None)
    _deliver(root / "f.tif", "sar_l1", 3, None)
    return root


@pytest.fixture(scope="module")
def built(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build([archive], tmp_path_factory.mktemp("built") / "out", CONFIG).manifest


def test_only_the_second_delivery_is_dropped(built: Manifest):
    for key, num_scenes, kept in (("opt", 4, {0, 2, 3}), ("sar_l1", 2, {0})):
        entry = built.modalities[key]
        assert entry.candidates == num_scenes * WINDOWS
        assert entry.dropped == {"near_duplicate": KEPT, "split_border": num_scenes * (WINDOWS - KEPT)}
        assert {*built.open_index(key, "train")["scene"].tolist()} == kept


def test_polarisations_of_a_product_are_not_duplicates(tmp_path: Path):
    root, _ = write_grd(tmp_path / "in")
    vv, vh = (next((root / "measurement").glob(f"*-{polarisation}-*")) for polarisation in ("vv", "vh"))
    with rasterio.open(vv) as one, rasterio.open(vh, "r+") as other:
        other.write(one.read() // 3)
    entry = build([tmp_path / "in"], tmp_path / "out", CONFIG).manifest.modalities["sar_l2"]
    assert len(entry.scenes) == 2
    assert "near_duplicate" not in entry.dropped


def test_it_is_off_unless_asked_for(archive: Path, tmp_path: Path):
    assert "near_duplicate" not in build([archive], tmp_path / "out", SMALL).manifest.modalities["opt"].dropped


def test_any_number_of_workers_gives_the_same_bytes(archive: Path, built: Manifest, tmp_path: Path):
    told: list[tuple[int, int]] = []
    build([archive], tmp_path / "out", CONFIG, workers=2, progress=lambda at: told.append((at.done, at.total)))
    assert not differences(tmp_path / "out", built.root)
    assert (told[0], told[-1]) == ((0, 2 * 6 * WINDOWS), (2 * 6 * WINDOWS, 2 * 6 * WINDOWS))
    assert told == sorted(told)


def _build_and_die(archive: Path, out: Path, config: BuildConfig, number: int) -> None:
    commit, count = DurableFile.commit, 0

    def deadly(file: DurableFile) -> None:
        nonlocal count
        count += 1
        commit(file)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    DurableFile.commit = deadly  # type: ignore[method-assign]
    build([archive], out, config)


@pytest.mark.parametrize("number", [2, 5, 17, 19, 30])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(archive: Path, built: Manifest, tmp_path: Path, number: int):
    child = multiprocessing.get_context("fork").Process(
        target=_build_and_die, args=(archive, tmp_path / "out", CONFIG, number)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    build([archive], tmp_path / "out", CONFIG)
    assert not differences(tmp_path / "out", built.root)


@pytest.mark.parametrize("passes", [1, 2])
def test_what_looks_like_a_broken_scene_stays(archive: Path, tmp_path: Path, passes: int):
    """The first delivery is broken, in the second case only once the first pass is done."""
    folder = tmp_path / "in"
    for name, seed in (("a", 1), ("b", 1), ("d", 2)):
        _deliver(folder / f"{name}.tif", "opt", seed, "2021-05-01T10:00:03")
    if passes == 1:
        damage(folder / "a.tif")

    def meanwhile(at: BuildProgress) -> None:
        if passes == 2 and at.done == at.total // 2:
            damage(folder / "a.tif")

    manifest = build([folder], tmp_path / "out", CONFIG, progress=meanwhile).manifest
    assert [scene.name for scene in manifest.quarantined] == ["in/a.tif"]
    entry = manifest.modalities["opt"]
    assert {*manifest.open_index("opt", "train")["scene"].tolist()} == {1, 2}
    assert entry.dropped == {"split_border": 2 * (WINDOWS - KEPT)}


def _bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_hashes_outlive_processing_and_tell_grounds_apart():
    generator = np.random.default_rng(0)
    tiles = generator.integers(0, 200, (40, 3, 48, 48)).astype(np.uint8)
    hashes = [picture_hash(tile, is_complex=False) for tile in tiles]
    for tile, found in zip(tiles, hashes, strict=True):
        noisy = np.clip(1.2 * tile + 5 + generator.normal(0, 2, tile.shape), 0, 255).astype(np.uint8)
        assert _bits(found, picture_hash(noisy, is_complex=False)) <= NEAR
        turned = np.exp(1j) * (tile[:2] + 1j * tile[1:])
        parts = [np.concatenate((x.real, x.imag)).astype(np.float32) for x in (turned, turned * np.exp(2j))]
        assert _bits(*(picture_hash(part, is_complex=True) for part in parts)) <= NEAR
    least = min(_bits(one, other) for i, one in enumerate(hashes) for other in hashes[:i])
    assert least > 2 * NEAR


def _tile(pixels_CHW: np.ndarray, nodata: float) -> Tile:
    record = TileRecord(
        modality="sar_l2",
        bands=("amp",),
        units="raw",
        dtype=pixels_CHW.dtype.name,
        sensor="",
        source="",
        row=0,
        col=0,
        size=48,
        nodata=nodata,
    )
    return Tile(pixels_CHW, record)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("float32", -9999.0), ("int16", -32768.0), ("float32", -3.4e38), ("float32", np.nan)]
)
def test_no_data_tells_nothing_of_the_ground(dtype: str, nodata: float):
    """Different ground with the same border is told apart, and the same ground is known whatever its no-data value."""
    hashes = []
    border_HW = np.add.outer(np.arange(48), np.arange(48)) < 32  # a corner, as of a scene that lies askew
    for seed in range(12):
        pixels_CHW = np.random.default_rng(seed).integers(1000, 1200, (1, 48, 48)).astype(dtype)
        pixels_CHW[:, border_HW] = nodata
        other_CHW = np.where(border_HW, 0, pixels_CHW).astype(dtype)
        hashes.append(hash_of(_tile(pixels_CHW, nodata)))
        assert _bits(hashes[-1], hash_of(_tile(other_CHW, 0.0))) <= NEAR
    assert min(_bits(one, other) for i, one in enumerate(hashes) for other in hashes[:i]) > 2 * NEAR


def test_search_finds_what_comparing_all_pairs_finds():
    generator = np.random.default_rng(1)
    hashes = generator.integers(0, 1 << 63, 60, dtype=np.uint64)
    hashes = np.concatenate((hashes, hashes, hashes))
    for number in range(60, 180):
        for bit in generator.choice(64, generator.integers(0, 6), replace=False):
            hashes[number] ^= np.uint64(1) << np.uint64(bit)
    scenes = generator.integers(0, 5, 180)
    expected = [
        any(_bits(int(h), int(o)) <= NEAR and t < s for o, t in zip(hashes, scenes, strict=True))
        for h, s in zip(hashes, scenes, strict=True)
    ]
    assert earlier_alike(hashes, scenes).tolist() == expected
    assert 20 < sum(expected) < 120


def _fail_on_a_full_disk(archive: Path, out: Path, most_bytes: int, kept: str) -> None:
    limit_files(most_bytes)
    with pytest.raises(ShardError, match=f"no space left for {out} .*; {kept}"):
        build([archive], out, CONFIG)


@pytest.mark.parametrize(
    ("most_bytes", "kept"),
    [(20_000, "the hashes of 9 of 9 units are kept"), (250_000, "6 of 9 units are finished and kept")],
)
def test_a_full_disk_keeps_what_either_pass_has_finished(
    archive: Path, built: Manifest, tmp_path: Path, most_bytes: int, kept: str
) -> None:
    out = tmp_path / "out"
    assert exit_code_of(_fail_on_a_full_disk, archive, out, most_bytes, kept) == 0
    assert len(list(out.glob(f"{BUILDING}/*-hashes.json"))) == 9
    build([archive], out, CONFIG)
    assert not differences(out, built.root)
