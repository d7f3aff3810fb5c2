"""The cache of remote shards: bounded, shared by processes, and never believed without a checksum."""

import fcntl
import hashlib
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from ringmoe.data.manifest import Manifest
from ringmoe.data.read import TileReader
from ringmoe.data.remote.cache import Cache
from ringmoe.data.remote.counts import Counts
from ringmoe.data.storage import FileEntry, RemoteConfig, folder_at
from ringmoe.errors import ConfigError, ShardError
from ringmoe.testing.http_server import FolderServer
from tests.fixtures.child import exit_code_of

BLOCK = 4096
SPAWN = multiprocessing.get_context("spawn")


def _entry(name, num_bytes=1 << 20):
    return FileEntry(name=name, bytes=num_bytes, sha256=hashlib.sha256(name.encode()).hexdigest())


def _content(number, num_bytes=BLOCK - 4):
    return memoryview(np.random.default_rng(number).bytes(num_bytes))


def _get(cache, entry, offset, num_bytes=BLOCK - 4):
    target = memoryview(bytearray(num_bytes))
    return bytes(target) if cache.get(entry, offset, target) else None


def _bytes_in(folder):
    """What lies in it while nobody changes it, as ``du`` counts, but for the folders themselves and the account."""
    with (folder / "ringmoe-shards-1/account").open("rb") as account:
        fcntl.flock(account, fcntl.LOCK_EX)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "account"]
        return sum(path.stat().st_blocks * 512 for path in files)


def test_what_is_kept_comes_back_by_file_and_place(tmp_path):
    counts = Counts()
    cache, a, b = Cache(tmp_path, 1 << 20, counts), _entry("a"), _entry("b")
    cache.put(a, 0, _content(1))
    cache.put(a, 512, _content(2, 100))
    assert _get(cache, a, 0) == _content(1)
    assert _get(cache, a, 512, 100) == _content(2, 100)
    assert _get(cache, a, 512, 101) is _get(cache, b, 0) is None
    again = Cache(tmp_path, 1 << 20, Counts())
    assert _get(again, a, 0) == _content(1)
    assert counts.values() | {"cache_hits": 2, "cache_misses": 2} == counts.values()


def test_what_was_used_longest_ago_makes_room(tmp_path):
    cache, entry = Cache(tmp_path, 20 * BLOCK, Counts()), _entry("a")
    for number in range(20):
        cache.put(entry, number, _content(number))
    assert _get(cache, entry, 0) == _content(0)  # now it is the newest
    cache.put(entry, 20, _content(20))
    kept = [number for number in range(21) if _get(cache, entry, number)]
    assert kept[0] == 0
    assert kept[-1] == 20
    assert 1 not in kept
    assert 17 <= len(kept) <= 20
    assert _bytes_in(tmp_path) <= 20 * BLOCK
    Cache(tmp_path, 5 * BLOCK, Counts())  # a smaller bound holds from the start
    assert 0 < _bytes_in(tmp_path) <= 5 * BLOCK


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path):
    counts = Counts()
    cache, entry = Cache(tmp_path, 2 * BLOCK, counts), _entry("a", 1 << 20)
    cache.put(entry, 0, _content(0))
    cache.put(entry, 1, _content(1, 3 * BLOCK))
    assert cache.file(entry, lambda file: pytest.fail("there is no room for it")) is None
    assert _bytes_in(tmp_path) <= 2 * BLOCK
    assert counts.values()["cache_not_kept"] == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "lengthen", "swap"])
def test_damaged_entries_are_dropped_and_counted(tmp_path, damage):
    counts = Counts()
    cache, entry = Cache(tmp_path, 1 << 20, counts), _entry("a")
    cache.put(entry, 0, _content(0))
    cache.put(entry, 1, _content(1))
    first, second = sorted((tmp_path / "ringmoe-shards-1/ranges").glob("*/*"))
    content = bytearray(first.read_bytes())
    content[1000] ^= 4
    changed = {"flip": content, "cut": content[:-1], "lengthen": first.read_bytes() + b" ", "swap": second.read_bytes()}
    first.write_bytes(changed[damage])
    assert sorted(value is None for value in (_get(cache, entry, 0), _get(cache, entry, 1))) == [False, True]
    assert counts.values()["cache_damaged"] == 1
    assert not first.exists()


def _hammer(folder, number, most_bytes):
    """Puts and gets ranges that other processes put and get at the same time."""
    cache, entry = Cache(folder, most_bytes, Counts()), _entry("shared")
    for turn in range(100):
        place = (7 * turn + number) % 60
        found = _get(cache, entry, place)
        assert found is None or found == _content(place)
        cache.put(entry, place, _content(place))


def test_processes_share_it_and_its_bound_holds_all_the_time(tmp_path):
    bound = 25 * BLOCK
    processes = [SPAWN.Process(target=_hammer, args=(tmp_path, number, bound)) for number in range(2)]
    for process in processes:
        process.start()
    most = 0
    while not (tmp_path / "ringmoe-shards-1/account").exists():
        time.sleep(0.01)
    while any(process.is_alive() for process in processes):
        most = max(most, _bytes_in(tmp_path))
        time.sleep(0.02)
    assert [process.exitcode for process in processes] == [0, 0]
    assert 0 < most <= bound


def _fill_for_ever(folder):
    cache, entry, number = Cache(folder, 200 * BLOCK, Counts()), _entry("shared"), 0
    while True:
        cache.put(entry, number, _content(number))
        number += 1


def test_a_kill_leaves_it_whole_and_within_its_bound(tmp_path):
    process = SPAWN.Process(target=_fill_for_ever, args=(tmp_path,))
    process.start()
    ranges = tmp_path / "ringmoe-shards-1/ranges"
    while len(list(ranges.glob("*/*"))) < 30:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    counts = Counts()
    cache, entry = Cache(tmp_path, 200 * BLOCK, counts), _entry("shared")
    for path in ranges.glob("*/*"):
        place = int(path.name.split("-")[1], 16)
        assert _get(cache, entry, place) == _content(place)
    assert counts.values()["cache_damaged"] == 0
    for number in range(250):
        cache.put(entry, 10**6 + number, _content(number))
    assert _bytes_in(tmp_path) <= 200 * BLOCK


def test_a_whole_file_is_fetched_by_one_and_stays_while_it_is_used(tmp_path):
    content, fetched = _content(0, 3 * BLOCK), []
    entry = FileEntry(name="x", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def fetch(file):
        fetched.append(1)
        time.sleep(0.2)
        file.write(content)

    caches = [Cache(tmp_path, 6 * BLOCK, Counts()) for _ in range(3)]
    paths = []
    threads = [threading.Thread(target=lambda cache=cache: paths.append(cache.file(entry, fetch))) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert len(set(paths)) == 1
    for number in range(20):  # room is made of ranges only
        caches[0].put(_entry("a"), number, _content(number))
    assert paths[0].read_bytes() == content
    paths[0].write_bytes(bytes(len(content)))
    counts = Counts()
    assert Cache(tmp_path, 6 * BLOCK, counts).file(entry, fetch).read_bytes() == content
    assert counts.values()["cache_damaged"] == 1
    assert len(fetched) == 2


def test_a_file_is_held_until_it_is_evicted_so_nobody_takes_it_meanwhile(tmp_path, monkeypatch):
    content, unlink, taken = _content(0, 2 * BLOCK), os.unlink, []
    entry = FileEntry(name="x", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    path = Cache(tmp_path, 4 * BLOCK, Counts()).file(entry, lambda file: file.write(content))

    def take_and_unlink(target):
        if target == str(path):
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    taken.append(True)
                except BlockingIOError:
                    taken.append(False)
        unlink(target)

    monkeypatch.setattr(os, "unlink", take_and_unlink)
    cache = Cache(tmp_path, 4 * BLOCK, Counts())
    for number in range(4):
        cache.put(_entry("a"), number, _content(number))
    assert taken == [False]
    assert not path.exists()


def test_a_turn_that_cannot_be_taken_is_a_file_that_is_not_kept(tmp_path):
    counts = Counts()
    cache, entry = Cache(tmp_path, 1 << 20, counts), _entry("a", BLOCK)
    (tmp_path / "ringmoe-shards-1/files" / f"{entry.sha256}.lock").mkdir()  # fails as on a full disk
    assert cache.file(entry, lambda file: pytest.fail("it has no place")) is None
    assert counts.values()["cache_not_kept"] == 1


def test_a_checksum_that_is_a_path_is_refused(tmp_path):
    entry = FileEntry(name="opt/train-000000.tar", bytes=9, sha256="../../../etc/passwd")
    cache = Cache(tmp_path, 1 << 20, Counts())
    for use in (lambda: cache.put(entry, 0, _content(0)), lambda: cache.file(entry, lambda file: None)):
        with pytest.raises(ShardError, match="is no SHA-256"):
            use()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the cache .*file cannot be used"):
        Cache(tmp_path / "file", 1 << 20, Counts())


def _read_on_a_full_disk(place, cache):
    from tests.fixtures.child import limit_files

    limit_files(300)
    folder = folder_at(place, RemoteConfig(cache=cache, cache_bytes=1 << 20))
    reader = TileReader([Manifest.open(place, RemoteConfig(cache=cache, cache_bytes=1 << 20))], "opt", "val")
    reader.read(np.arange(8))
    assert folder.counts.values()["cache_not_kept"] >= 8


def test_reading_goes_on_when_the_disk_is_full(shards, tmp_path):
    with FolderServer(shards.root) as server:
        remote = RemoteConfig(cache=tmp_path, cache_bytes=1 << 20)
        Manifest.open(server.url, remote).open_index("opt", "val")  # is kept while there is room
        assert exit_code_of(_read_on_a_full_disk, server.url, tmp_path) == 0


def test_tiles_are_read_from_it_and_read_again_where_they_are_damaged(shards, tmp_path):
    expected, _ = TileReader([shards], "ms", "train").read(np.arange(30))
    with FolderServer(shards.root) as server:
        for attempts, damaged in ((8, 0), (9, 0), (10, 3)):  # a folder of its own each time
            files = sorted((tmp_path / "ringmoe-shards-1/ranges").glob("*/*"))
            for path in files[:damaged]:
                path.write_bytes(path.read_bytes()[::-1])
            server.requests.clear()
            remote = RemoteConfig(cache=tmp_path, attempts=attempts)
            blocks, _ = TileReader([Manifest.open(server.url, remote)], "ms", "train").read(np.arange(30))
            np.testing.assert_array_equal(blocks[0].pixels_BCHW, expected[0].pixels_BCHW)
            counts = folder_at(server.url, remote).counts.values()
            assert counts["cache_damaged"] == damaged
            tars = sum(number for (path, _), number in server.requests.items() if path.endswith(".tar"))
            assert (tars > 0) == (attempts != 9)
