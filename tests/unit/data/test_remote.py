"""Shards over a real HTTP server on this machine: the same batches as from the folder itself, whatever goes wrong."""

import os
import re
import shutil
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.manifest import Manifest
from ringmoe.data.read import TileReader
from ringmoe.data.remote.folder import RemoteFolder
from ringmoe.data.remote.objects import Objects
from ringmoe.data.storage import LocalFolder, RemoteConfig, folder_at
from ringmoe.errors import ConfigError, ShardError
from ringmoe.testing.http_server import FAULTS, FolderServer, seeded_faults
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.callbacks.remote import RemoteReading

FOUR = ("opt", "ms", "sar_l1", "sar_l2")
QUICK = RemoteConfig(timeout=0.4, attempts=10)


@pytest.fixture
def server(shards):
    with FolderServer(shards.root) as server:
        yield server


def _loader(place, remote=QUICK, *, split="train", rank=0, world=1):
    config = DataConfig(shards=(place,), micro_batch=24, shuffle_window=2, remote=remote)
    return Loader(config, modalities=FOUR, image_size=16, seed=5, split=split, rank=rank, world=world)


def _content(batch):
    """Everything of a batch that training sees."""
    return [
        (key, images.pixels_BCHW.numpy().tobytes(), images.keys_B.tolist(), list(images.sample_ids))
        for key, images in batch.images.items()
    ]


def _steps(place, steps, **options):
    with closing(_loader(place, **options)) as loader:
        return [_content(loader.batch(step, 0)) for step in steps]


def _counts(place, remote=QUICK):
    return folder_at(place, remote).counts.values()


def test_batches_are_those_of_the_folder(shards, server):
    patient = RemoteConfig(timeout=60.0)  # also on a machine with other work nothing is repeated
    assert _steps(server.url, range(4), remote=patient) == _steps(shards.root, range(4))
    counts = _counts(server.url, patient)
    assert counts["repeated"] == 0
    assert counts["requests"] == sum(server.requests.values()) <= 1 + 4 + 4 * 24
    with closing(_loader(server.url, split="val")) as far, closing(_loader(shards.root, split="val")) as near:
        assert list(map(_content, far.sequential(7))) == list(map(_content, near.sequential(7)))


def test_folders_here_and_elsewhere_are_mixed(shards, own_shards, server):
    near, far = own_shards("copy"), server.url
    expected = TileReader([Manifest.open(near), shards], "opt", "train")
    mixed = TileReader([Manifest.open(near), Manifest.open(far, QUICK)], "opt", "train")
    samples = np.random.default_rng(0).permutation(expected.num_samples)[:60]
    (block,), names = mixed.read(samples)
    (other,), other_names = expected.read(samples)
    np.testing.assert_array_equal(block.pixels_BCHW, other.pixels_BCHW)
    assert list(names) == list(other_names)
    assert {name.split("/")[0] for name in names} == {"copy", "shards"}
    mixed.close()


def test_a_run_goes_on_in_the_one_where_it_stopped_in_the_other(shards, server):
    with closing(_loader(server.url)) as far, closing(_loader(shards.root)) as near:
        far.check_state(near.state(3))
        near.check_state(far.state(3))
        ahead, expected = far.iterate(3), near.iterate(3)
        for _ in range(3):
            assert [_content(batch) for batch in next(ahead)] == [_content(batch) for batch in next(expected)]
        ahead.close()
        expected.close()


def test_a_fifth_of_all_requests_may_fail(shards, tmp_path):
    near = _steps(shards.root, range(3))
    with FolderServer(shards.root, seeded_faults(11, 0.2)) as server:
        for remote in (QUICK, RemoteConfig(timeout=0.4, attempts=10, cache=tmp_path)):
            assert _steps(server.url, range(3), remote=remote) == near
            counts = _counts(server.url, remote)
            assert counts["repeated"] > 8
        share = 1 - server.failed[""] / sum(server.failed.values())
        assert 0.12 < share < 0.28
        assert len(server.failed) > 8  # kinds of faults, and none


def _cold_and_warm(place, cache):
    """What a rank reads, twice, and what that has cost each time."""
    remotes = [RemoteConfig(timeout=0.4, attempts=attempts, cache=cache) for attempts in (10, 11)]
    rank = int(os.environ["RANK"])
    return [(_steps(place, range(4), remote=each, rank=rank, world=2), _counts(place, each)) for each in remotes]


def test_two_ranks_share_a_cache_behind_a_failing_server(shards, tmp_path):
    with FolderServer(shards.root, seeded_faults(3, 0.2)) as server:
        results = run_ranks(_cold_and_warm, 2, server.url, tmp_path, init=False)
        for rank, (cold, warm) in enumerate(results):
            near = _steps(shards.root, range(4), rank=rank, world=2)
            assert cold[0] == warm[0] == near
            assert warm[1]["cache_hits"] == cold[1]["cache_misses"] + cold[1]["cache_hits"] == 4 * 24
            assert warm[1]["requests"] == 1  # the manifest
        indices = Counter(path for path, _ in server.requests if path.endswith(".npy"))
        assert set(indices.values()) == {1}  # one of the ranks has fetched each of them for both


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"changed"}))  # nobody knows the first ETag
def test_every_fault_is_met_by_another_attempt(shards, fault):
    near = _steps(shards.root, range(1))
    with FolderServer(shards.root, lambda path, asked, attempt: fault if attempt == 0 and asked else "") as server:
        assert _steps(server.url, range(1)) == near
        folder = folder_at(server.url, QUICK)
        assert server.failed[fault] >= 5
        counts = folder.counts.values()
        if fault == "flip":
            assert counts["renewed"] >= 5
        else:
            assert counts["repeated"] == sum(folder.counts.faults().values()) >= 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"attempt 2, the last, ended so: HTTP 503"),
        ("416", r"HTTP 416"),
        ("hang up", r"the connection failed"),
        ("drop", r"after \d+ (bytes|of)"),
        ("stall", r"no answer in time after \d+ bytes"),
        ("whole", r"range request with HTTP 200 and the whole file.*nginx"),
        ("short", r"Content-Range 'bytes \d+-\d+/\d+'; asked for were \d+-\d+"),
        ("elsewhere", r"Content-Range 'bytes \d+-\d+/\d+'; asked for were \d+-\d+"),
        ("resized", r"it has [\d,]+ bytes, but was written with [\d,]+"),
        ("flip", r"its pixels are not those that were written"),
    ],
)
def test_a_fault_that_stays_is_told_with_shard_member_and_url(shards, fault, message):
    remote = RemoteConfig(timeout=0.3, attempts=2)
    with FolderServer(shards.root, lambda path, asked, attempt: fault * path.endswith(".tar")) as server:
        reader = TileReader([Manifest.open(server.url, remote)], "opt", "train")
        with pytest.raises(ShardError, match=message) as caught:
            reader.read(np.array([3]))
        assert re.search(r"^shards/opt/train-000000\.tar:\S+opt-scene-0_r000000_c0000\d\d: ", str(caught.value))
        assert server.url in str(caught.value)


def test_neighbours_are_fetched_together_and_the_index_once(shards, server):
    readers = [TileReader([Manifest.open(server.url, QUICK)], "opt", "train") for _ in range(3)]
    blocks, _ = readers[0].read(np.arange(40))
    expected, _ = TileReader([shards], "opt", "train").read(np.arange(40))
    np.testing.assert_array_equal(blocks[0].pixels_BCHW, expected[0].pixels_BCHW)
    files = Counter(path.removeprefix("/shards/") for path, _ in server.requests.elements())
    assert files == {"manifest.json": 1, "opt/train.index.npy": 1, "opt/train-000000.tar": 1}


def test_a_shard_that_is_missing_is_refused_at_once(own_shards):
    root = own_shards()
    (root / "sar_l2/train-000000.tar").unlink()
    with FolderServer(root) as server:
        reader = TileReader([Manifest.open(server.url, QUICK)], "sar_l2", "train")
        begun = time.monotonic()
        with pytest.raises(ShardError, match=r"train-000000\.tar cannot be read: HTTP 404"):
            reader.read(np.arange(2))
        assert time.monotonic() - begun < 10  # ten attempts take twenty seconds and more
        assert max(server.requests.values()) == 1


def test_shards_that_were_built_again_while_they_are_read_are_refused(own_shards):
    root = own_shards()
    with FolderServer(root) as server:
        reader = TileReader([Manifest.open(server.url, RemoteConfig(attempts=2))], "opt", "train")
        reader.read(np.arange(2))
        path = root / "opt/train-000000.tar"
        path.write_bytes(path.read_bytes()[::-1])
        server.headers = {"ETag": '"second"'}
        with pytest.raises(ShardError, match="its pixels are not those"):
            reader.read(np.array([3]))
        assert folder_at(server.url, RemoteConfig(attempts=2)).counts.faults() == {"changed": 1}
        (root / "opt/train.index.npy").write_bytes(path.read_bytes())
        with pytest.raises(ShardError, match=r"train\.index\.npy.*it has [\d,]+ bytes, but was written with"):
            Manifest.open(server.url, RemoteConfig(attempts=1)).open_index("opt", "train")


def test_a_file_that_is_damaged_and_a_server_that_is_away_are_told_apart(own_shards):
    root, remote = own_shards(), RemoteConfig(attempts=2)
    path = root / "sar_l2/val-000000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    (root / "opt/val-000000.tar").unlink()
    with FolderServer(root) as server:
        manifest = Manifest.open(server.url, remote)
        wrong = {entry.name: fault for entry, fault in manifest.verify() if fault}
        assert list(wrong) == ["opt/val-000000.tar", "sar_l2/val-000000.tar"]
        assert wrong["opt/val-000000.tar"] == "cannot be read: HTTP 404 Not Found"
        assert "but was written with" in wrong["sar_l2/val-000000.tar"]
    with pytest.raises(ShardError, match=r"refused\. Is the URL right, and does the server answer"):
        list(manifest.verify())


def test_places_that_are_not_read_are_refused_by_name(shards, tmp_path):
    for place, message in (
        ("pipe:curl https://host/x.tar", "never run"),
        ("file:///etc/shards", "without 'file:'"),
        ("ftp://host/shards", "not read by ftp://"),
        ("https://", "should be https://host/path"),
        ("https://host/shards?token=secret", "without user, password, query"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            Manifest.open(place)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="should be") as caught:
        Manifest.open("https://me:secret@host/shards")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="was made a path"):
        Manifest.open(tmp_path.__class__("https://host/shards"))
    assert folder_at(str(shards.root)) == LocalFolder(shards.root)
    for options in ({"attempts": 0}, {"timeout": 0.0}, {"cache_bytes": 0}, {"connections": 0}):
        with pytest.raises(ConfigError, match=f"remote.{next(iter(options))}"):
            RemoteConfig(**options)


def test_an_object_store_without_its_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"gs://bucket/shards.*package gcsfs.*pip install gcsfs"):
        folder_at("gs://bucket/shards")


def test_object_stores_are_read_through_fsspec(own_shards):
    """A store of fsspec's own, in memory, behind the same door as s3fs and gcsfs."""
    store, root = fsspec.filesystem("memory"), own_shards("stored")
    store.put(str(root), "/stored", recursive=True)
    folder = RemoteFolder("https://host/stored", QUICK)
    folder._transport = Objects(store, "memory://stored", "/stored")
    near = Manifest.open(root)
    far = replace(near, folder=folder)
    for key in FOUR:
        expected, names = TileReader([near], key, "train").read(np.arange(3))
        blocks, far_names = TileReader([far], key, "train").read(np.arange(3))
        np.testing.assert_array_equal(blocks[0].pixels_BCHW, expected[0].pixels_BCHW)
        assert list(names) == list(far_names)
    store.rm("/stored/opt/train-000000.tar")
    with pytest.raises(ShardError, match=r"memory://stored/opt/train-000000\.tar.*FileNotFoundError"):
        TileReader([far], "opt", "train").read(np.arange(2))
    faults = {entry.name: fault for entry, fault in far.verify() if fault}
    assert list(faults) == ["opt/train-000000.tar"]
    shutil.rmtree(root)


def _say_at_the_end() -> list[str]:
    """What a rank says at the end of a run in which only the second met a fault."""
    folder, said = folder_at("http://127.0.0.1:9/shards"), []
    folder.counts.add("requests", 3)
    if os.environ["RANK"] == "1":
        folder.counts.add_fault("timeout")
    RemoteReading([folder]).finish(SimpleNamespace(say=said.append))
    return said


def test_what_failed_on_any_rank_is_said_at_the_end():
    first, _ = run_ranks(_say_at_the_end, 2)
    assert len(first) == 1
    assert "1 x timeout" in first[0]
