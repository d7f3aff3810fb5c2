"""Shards in a bucket: a real S3 server on this machine, read through s3fs as any other."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ringmoe.cli.main import VERBS
from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.manifest import Manifest
from ringmoe.data.places import PlaceManifest, PlaceReader, PlaceSample
from ringmoe.data.read import TileReader
from ringmoe.data.storage import RemoteConfig, folder_at, remote_folder
from ringmoe.errors import ShardError
from tests.fixtures.places import write_archive

from .conftest import SMALL

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto", reason="moto, the server of S3 for tests, is not installed")

from tests.fixtures.s3 import Server, s3_server  # noqa: E402 (it needs both)

QUICK = RemoteConfig(timeout=2.0, attempts=4)
FOUR = ("opt", "ms", "sar_l1", "sar_l2")
PLACE = "s3://archive/shards"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with s3_server() as server:
        s3fs.S3FileSystem().mkdir("archive")
        yield server


@pytest.fixture
def server(running: Server, shards: Manifest) -> Iterator[Server]:
    """With the shards in its bucket, all readers of it new, and no fault planned."""
    store = s3fs.S3FileSystem()
    store.put(str(shards.root), "archive/", recursive=True)
    remote_folder.cache_clear()
    running.start_anew(lambda path, before: "")
    yield running
    running.start_anew(lambda path, before: "")
    store.rm("archive/shards", recursive=True)


def _steps(place: str | Path, remote: RemoteConfig = QUICK) -> list[list[bytes]]:
    config = DataConfig(shards=(place,), micro_batch=24, shuffle_window=2, remote=remote)
    with closing(Loader(config, modalities=FOUR, image_size=16, seed=5, split="train", rank=0, world=1)) as loader:
        batches = [loader.batch(step, 0) for step in range(3)]
    return [[images.pixels_BCHW.numpy().tobytes() for images in batch.images.values()] for batch in batches]


def test_batches_are_those_of_the_folder(shards: Manifest, server: Server, tmp_path: Path):
    near = _steps(shards.root)
    assert _steps(PLACE) == near
    cached = replace(QUICK, cache=tmp_path)
    assert _steps(PLACE, cached) == _steps(PLACE, cached) == near
    assert folder_at(PLACE, cached).counts.values()["cache_hits"] > 0


def test_samples_of_a_grouped_folder_are_those_of_the_folder(server: Server, tmp_path: Path):
    grouped = build([write_archive(tmp_path / "in")], tmp_path / "grouped", replace(SMALL, grouped=True)).manifest.root
    s3fs.S3FileSystem().put(str(grouped), "archive/", recursive=True)
    near, far = (PlaceReader(PlaceManifest.open(at, QUICK), "train") for at in (grouped, "s3://archive/grouped"))
    expected = [near[number] for number in range(8)]
    for found in ([far[number] for number in range(8)], *_by_a_worker(far, 8)):
        assert [sample.key for sample in found] == [sample.key for sample in expected]
        for one, other in zip(found, expected, strict=True):
            for name, tile in one.tiles.items():
                np.testing.assert_array_equal(tile.pixels_CHW, other.tiles[name].pixels_CHW)


def _by_a_worker(reader: PlaceReader, num: int) -> Iterator[list[PlaceSample]]:
    """Read by a forked process, when this one has connections and threads already."""
    subset = torch.utils.data.Subset(reader, range(num))
    yield from torch.utils.data.DataLoader(subset, num, num_workers=1, collate_fn=list, multiprocessing_context="fork")


def test_the_commands_take_the_url(server: Server, capsys: pytest.CaptureFixture[str]):
    VERBS["shards list"].run("shards list", [PLACE])
    assert "sar_l1" in capsys.readouterr().out
    VERBS["shards verify"].run("shards verify", [PLACE])
    assert f"{PLACE}: all " in " ".join(capsys.readouterr().out.split())


def test_damage_is_found_and_named(shards: Manifest, server: Server):
    store, manifest = s3fs.S3FileSystem(), Manifest.open(PLACE, QUICK)
    content = bytearray((shards.root / "opt/train-000000.tar").read_bytes())
    content[len(content) // 2] ^= 1
    store.pipe_file("archive/shards/opt/train-000000.tar", bytes(content))
    store.rm("archive/shards/ms/val-000000.tar")
    faults = {entry.name: fault for entry, fault in manifest.verify() if fault}
    assert faults["opt/train-000000.tar"] == "has another checksum: its content changed"
    assert faults["ms/val-000000.tar"].startswith("cannot be read: FileNotFoundError")
    assert len(faults) == 2
    with pytest.raises(ShardError, match=r"s3://archive/shards/ms/val-000000\.tar cannot be read: FileNotFoundError"):
        TileReader([manifest], "ms", "val").read(np.arange(2))


@pytest.mark.parametrize("place", ["s3://archive/nothing", "s3://nowhere/shards"])
def test_what_is_not_there_is_named_at_once(server: Server, place: str):
    with pytest.raises(ShardError, match=f"{place}/manifest.json cannot be read: FileNotFoundError"):
        Manifest.open(place, QUICK)
    assert folder_at(place, QUICK).counts.values()["requests"] == 1


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_every_first_request_may_fail(shards: Manifest, server: Server, fault: str):
    server.start_anew(lambda path, before: fault if before == 0 else "")
    assert _steps(PLACE, replace(QUICK, attempts=5)) == _steps(shards.root)
    assert server.failed[fault] >= 9  # the manifest, four indices, four shards


def test_a_refusal_is_final(server: Server):
    reader = TileReader([Manifest.open(PLACE, QUICK)], "opt", "train")
    server.start_anew(lambda path, before: "403" if path.endswith(".tar") else "")
    with pytest.raises(ShardError, match=r"s3://archive/shards/opt/train-000000\.tar cannot be read: PermissionError"):
        reader.read(np.arange(2))
    assert folder_at(PLACE, QUICK).counts.values()["repeated"] == 0


def test_a_server_that_goes_away_is_waited_for(shards: Manifest, server: Server):
    reader = TileReader([Manifest.open(PLACE, QUICK)], "opt", "train")
    reader.read(np.arange(2))
    server.pause()
    back = threading.Timer(1.0, server.go_on)
    back.start()
    (block,), _ = reader.read(np.arange(30))
    back.join()
    (expected,), _ = TileReader([shards], "opt", "train").read(np.arange(30))
    np.testing.assert_array_equal(block.pixels_BCHW, expected.pixels_BCHW)


def test_one_that_stays_away_is_told_in_words(server: Server):
    reader = TileReader([Manifest.open(PLACE, replace(QUICK, attempts=2))], "opt", "train")
    server.pause()
    try:
        with pytest.raises(ShardError, match=r"opt/train.*s3://archive/shards.*attempt 2, the last"):
            reader.read(np.arange(2))
    finally:
        server.go_on()
