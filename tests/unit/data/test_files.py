import os
from pathlib import Path

import numpy as np
import pytest

from ringmoe.data import files
from ringmoe.data.files import OpenFiles
from ringmoe.errors import ShardError

SIZE = 5000


@pytest.fixture
def paths(tmp_path):
    """Seven files of random bytes."""
    found = [tmp_path / f"{number}.bin" for number in range(7)]
    for number, path in enumerate(found):
        path.write_bytes(np.random.default_rng(number).bytes(SIZE * 20))
    return found


def _open(paths):
    return OpenFiles(lambda number: os.open(paths[number], os.O_RDONLY))


def _fill(reader, wanted, size=SIZE):
    buffer = np.zeros(len(wanted) * size, np.uint8)
    targets = [buffer.data[i * size : (i + 1) * size] for i in range(len(wanted))]
    numbers, offsets = [number for number, _ in wanted], [offset for _, offset in wanted]
    runs = list(reader.fill(numbers, offsets, targets, [f"range {i}" for i in range(len(wanted))]))
    assert sorted(i for run in runs for i in range(len(wanted))[run]) == list(range(len(wanted)))
    return buffer.reshape(len(wanted), size)


def _expected(paths, wanted, size=SIZE):
    return [list(paths[number].read_bytes()[offset : offset + size]) for number, offset in wanted]


@pytest.mark.parametrize("most_open", [2, 128])
@pytest.mark.parametrize("run", [1, 3 * SIZE, 1 << 30])
def test_ranges_of_many_files_arrive_where_they_belong(paths, monkeypatch, most_open, run):
    monkeypatch.setattr(files, "_MOST_OPEN", most_open)
    monkeypatch.setattr(files, "_RUN", run)
    reader = _open(paths)
    generator = np.random.default_rng(0)
    for _ in range(3):
        wanted = list(zip(generator.integers(0, 7, 11).tolist(), generator.integers(0, SIZE, 11).tolist(), strict=True))
        assert _fill(reader, wanted).tolist() == _expected(paths, wanted)
    assert len(reader._descriptors) <= max(most_open, 7)
    reader.close()
    assert not reader._descriptors
    assert _fill(reader, [(0, 1)]).tolist() == _expected(paths, [(0, 1)])


def test_files_of_a_reader_that_is_forgotten_are_closed(paths):
    reader = _open(paths)
    _fill(reader, [(number, 0) for number in range(7)])
    descriptors = list(reader._descriptors.values())
    assert [os.readlink(f"/proc/self/fd/{each}") for each in descriptors] == list(map(str, paths))
    del reader
    assert not [each for each in descriptors if Path(f"/proc/self/fd/{each}").exists()]


def test_what_is_not_in_memory_is_read_too(paths):
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    wanted = [(6 - number, 17 * number) for number in range(7)]
    assert _fill(_open(paths), wanted).tolist() == _expected(paths, wanted)


def test_a_file_system_that_knows_no_page_cache_is_read_plainly(paths, monkeypatch):
    plain = os.preadv

    def refusing(descriptor, buffers, offset, flags=0):
        if flags:
            raise OSError(95, "Operation not supported")
        return plain(descriptor, [buffers[0][:777]], offset)  # and gives less than it was asked for

    monkeypatch.setattr(os, "preadv", refusing)
    wanted = [(2, 3), (2, 9), (4, 0)]
    assert _fill(_open(paths), wanted).tolist() == _expected(paths, wanted)


def test_what_cannot_be_read_is_named(paths):
    with pytest.raises(ShardError, match="range 1 has 5000 bytes, of which 4990 could be read"):
        _fill(_open(paths), [(0, 0), (1, SIZE * 19 + 10), (2, 0)])
