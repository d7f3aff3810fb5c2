"""Grouped shards over a real HTTP server on this machine: the same samples, whatever goes wrong."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ringmoe.data.build import build
from ringmoe.data.places import PlaceManifest, PlaceReader, PlaceSample
from ringmoe.data.storage import RemoteConfig, folder_at
from ringmoe.errors import ShardError
from ringmoe.testing.http_server import FolderServer, seeded_faults
from tests.fixtures.places import write_archive

from .conftest import SMALL

QUICK = RemoteConfig(timeout=0.4, attempts=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grouped")
    return build([write_archive(folder / "in")], folder / "out", replace(SMALL, grouped=True)).manifest.root


@pytest.fixture
def server(root: Path) -> Iterator[FolderServer]:
    with FolderServer(root) as server:
        yield server


def _reader(url: str, remote: RemoteConfig = QUICK) -> PlaceReader:
    return PlaceReader(PlaceManifest.open(url, remote), "train")


def _same(found: PlaceSample, expected: PlaceSample) -> bool:
    assert (found.key, found.place, list(found.tiles)) == (expected.key, expected.place, list(expected.tiles))
    for name, tile in found.tiles.items():
        assert tile.record == expected.tiles[name].record
        np.testing.assert_array_equal(tile.pixels_CHW, expected.tiles[name].pixels_CHW)
    return True


def test_samples_are_those_of_the_folder(root: Path, server: FolderServer):
    near, far = PlaceReader(PlaceManifest.open(root), "train"), _reader(server.url)
    assert len(near) > 40
    assert all(map(_same, far, near))
    assert sum(server.requests.values()) < 2 + len(near) / 4  # neighbours come together
    assert _same(far[-1], near[len(near) - 1])
    with pytest.raises(IndexError):
        far[len(near)]


@pytest.mark.parametrize("kinds", [("503", "drop", "short", "whole"), ("flip",)])
def test_a_fifth_of_all_requests_may_fail(root: Path, kinds: tuple[str, ...], tmp_path: Path):
    remote = replace(QUICK, cache=tmp_path)
    with FolderServer(root, seeded_faults(5, 0.2, kinds)) as server:
        far = _reader(server.url, remote)
        near = PlaceReader(PlaceManifest.open(root), "train")
        assert all(_same(far[number], near[number]) for number in range(30))
        counts = folder_at(server.url, remote).counts.values()
        assert counts["renewed" if kinds == ("flip",) else "repeated"] > 2
        before = sum(server.requests.values())
        assert all(_same(far[number], near[number]) for number in range(30))
        assert sum(server.requests.values()) == before  # all of it from the cache


def test_damage_at_the_source_is_named_with_its_url(root: Path):
    with (
        FolderServer(root, lambda path, asked, attempt: "flip" if path.endswith(".tar") else "") as server,
        pytest.raises(ShardError, match=r"http://127.*/places/train-000000\.tar:.*(wrong checksum|not where)"),
    ):
        _reader(server.url)[0]


def _keys(samples: list[PlaceSample]) -> list[str]:
    return [sample.key for sample in samples]


def test_the_workers_of_a_data_loader_have_connections_of_their_own(server: FolderServer):
    far = _reader(server.url)
    expected = [far[number].key for number in range(8)]  # this process has connections and threads by now
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(far, range(8)), 4, num_workers=1, collate_fn=_keys, multiprocessing_context="fork"
    )
    assert [key for batch in loader for key in batch] == expected
    assert copy(far)[3].key == expected[3]  # by what a worker gets that is started afresh
