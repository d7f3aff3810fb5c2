"""A bounded store of ranges and whole files on this machine, shared by all processes that are pointed at its folder.

What is kept is named by the checksum of the file it comes from, so it never goes stale: another file is another name.
Every change is made under one lock, in an order that a kill at any moment leaves safe: room is accounted for before it
is taken, and files get their names when they are whole. What is read is compared with its checksum; damaged entries
are dropped.
"""

import fcntl
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from ringmoe.data.remote.counts import DAMAGED, HITS, MISSES, NOT_KEPT, Counts
from ringmoe.data.storage import FileEntry
from ringmoe.errors import ConfigError, ShardError

_FOLDER = "ringmoe-shards-1"  # only what lies in it is ever removed
_CHECKSUM_BYTES = 4
_BLOCK = 4096  # what a file takes on disk is a multiple of it
_LEFT_BY_EVICTION = 0.9  # share of the bound, so that one look at all entries serves many additions


class Cache:
    """Ranges by file and place, and whole files by checksum. Any number of threads and processes may use it."""

    def __init__(self, folder: Path, most_bytes: int, counts: Counts) -> None:
        """Opens the cache, which is made where there is none, and removes what is above the bound.

        Raises:
            ConfigError: The folder cannot be made or written.
        """
        self._folder, self._most_bytes, self._counts = folder / _FOLDER, most_bytes, counts
        self._thread_lock = Lock()
        self._in_use: dict[str, BinaryIO] = {}
        try:
            for name in ("ranges", "files"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._account = os.open(self._folder / "account", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            with self._locked():
                self._reserve(0)
        except OSError as error:
            raise ConfigError(f"the cache {folder} cannot be used: {error}. Name one that can be written") from error

    def get(self, entry: FileEntry, offset: int, target: memoryview) -> bool:
        """Reads a range; False where it is not kept.

        Args:
            entry: The file that it is a part of.
            offset: Its first byte.
            target: Where it goes, and by its size how many bytes it has.
        """
        path = self._path(entry, offset, len(target))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._counts.add(MISSES)
            return False
        try:
            checksum, beyond = bytearray(_CHECKSUM_BYTES), bytearray(1)
            num_read = os.preadv(descriptor, [checksum, target, beyond], 0)
            if num_read == _CHECKSUM_BYTES + len(target) and checksum == _checksum(path, target):
                os.utime(descriptor)
                self._counts.add(HITS)
                return True
        except OSError:
            pass  # a disk that cannot be read has damaged it as well
        finally:
            os.close(descriptor)
        self.drop(entry, offset, len(target))
        self._counts.add(MISSES)
        return False

    def put(self, entry: FileEntry, offset: int, content: memoryview) -> None:
        """Keeps a range where there is room for it."""
        path = self._path(entry, offset, len(content))
        try:
            with self._locked():
                if path.exists():
                    return
                if not self._reserve(_on_disk(_CHECKSUM_BYTES + len(content))):
                    self._counts.add(NOT_KEPT)
                    return
                path.parent.mkdir(exist_ok=True)
                partial = self._folder / "partial"  # one is enough: whoever writes has the lock
                with partial.open("wb") as file:
                    file.write(_checksum(path, content))
                    file.write(content)
                partial.replace(path)
        except OSError:  # a full disk, mostly; the content itself is where it was wanted
            self._counts.add(NOT_KEPT)

    def drop(self, entry: FileEntry, offset: int, length: int) -> None:
        """Removes a range whose content has proved wrong."""
        with suppress(OSError):
            self._path(entry, offset, length).unlink()
            self._counts.add(DAMAGED)

    def file(self, entry: FileEntry, fetch: Callable[[BinaryIO], None]) -> Path | None:
        """A whole file, which is fetched where it is not kept; it stays as long as this process lives.

        Args:
            entry: The file.
            fetch: Writes its content, and raises where that is not what was written at first.

        Returns:
            Its path; None where there is no room.
        """
        path = self._folder / "files" / _digest_of(entry)
        if entry.sha256 in self._in_use:
            return path
        try:
            with path.with_suffix(".lock").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)  # who comes second waits, and finds what the first has fetched
                self._in_use_if_whole(path, entry)
                if entry.sha256 not in self._in_use:
                    self._fetch(path, entry, fetch)
        except OSError:
            self._counts.add(NOT_KEPT)
        return path if entry.sha256 in self._in_use else None

    def _in_use_if_whole(self, path: Path, entry: FileEntry) -> None:
        """Holds a file that is kept, or drops it where it is damaged."""
        try:
            file = path.open("rb")
        except OSError:
            return
        fcntl.flock(file, fcntl.LOCK_SH)  # what is locked is not evicted
        status = os.fstat(file.fileno())
        if not status.st_nlink:  # it was, a moment ago
            file.close()
        elif status.st_size == entry.bytes and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
            os.utime(file.fileno())
            self._in_use[entry.sha256] = file
        else:
            self._counts.add(DAMAGED)
            file.close()
            path.unlink(missing_ok=True)

    def _fetch(self, path: Path, entry: FileEntry, fetch: Callable[[BinaryIO], None]) -> None:
        """Fetches a file, in the room that was reserved for it."""
        partial = path.with_suffix(".partial")
        file = partial.open("w+b")
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            with self._locked():
                if not self._reserve(_on_disk(entry.bytes)):
                    raise OSError("no room")
                os.posix_fallocate(file.fileno(), 0, max(entry.bytes, 1))
            fetch(file)
            file.flush()
            file.truncate(entry.bytes)
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            file.close()
            partial.unlink(missing_ok=True)
            raise
        self._in_use[entry.sha256] = file

    def _path(self, entry: FileEntry, offset: int, length: int) -> Path:
        name = f"{_digest_of(entry)}-{offset:x}-{length:x}"
        spread = zlib.crc32(name.encode()) & 0xFF  # folders stay small, also with one large shard
        return self._folder / "ranges" / f"{spread:02x}" / name

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one thread of one process is in here at a time."""
        with self._thread_lock:
            fcntl.flock(self._account, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._account, fcntl.LOCK_UN)

    def _reserve(self, num_bytes: int) -> bool:
        """Accounts for bytes that are about to be written; what was used longest ago makes room. Under the lock.

        The account may say more than there is, after a kill, but never less.
        """
        known = os.pread(self._account, 8, 0)
        used = int.from_bytes(known, "little") if len(known) == 8 else None
        if used is None or used + num_bytes > self._most_bytes:
            used = self._evict(num_bytes)
        fits = used + num_bytes <= self._most_bytes
        os.pwrite(self._account, (used + num_bytes * fits).to_bytes(8, "little"), 0)
        return fits

    def _evict(self, num_bytes: int) -> int:
        """Removes what was used longest ago until there is room; how much is left."""
        found = []
        for folder in (self._folder / "files", *(self._folder / "ranges").iterdir()):
            for each in os.scandir(folder):
                with suppress(FileNotFoundError):
                    status = each.stat()
                    found.append((status.st_mtime_ns, _on_disk(status.st_size), each.path))
        used = sum(size for _, size, _ in found)
        if used + num_bytes <= self._most_bytes:
            return used
        goal = min(int(_LEFT_BY_EVICTION * self._most_bytes), self._most_bytes - num_bytes)
        for _, size, path in sorted(found):
            if used <= goal:
                break
            if size and _remove_unused(path):
                used -= size
        return used


def _digest_of(entry: FileEntry) -> str:
    """The checksum that names a file; a manifest from elsewhere may hold anything, and this becomes a path."""
    if not re.fullmatch("[0-9a-f]{64}", entry.sha256):
        raise ShardError(f"{entry.name}: {entry.sha256!r} is no SHA-256 checksum: the manifest is damaged")
    return entry.sha256


def _checksum(path: Path, content: memoryview) -> bytes:
    """Of a range and the name under which it is kept."""
    return zlib.crc32(content, zlib.crc32(path.name.encode())).to_bytes(_CHECKSUM_BYTES, "little")


def _on_disk(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def _remove_unused(path: str) -> bool:
    """Removes a file unless a process holds it; whether it is gone.

    Whole files are mapped into memory, and would take their room without a name. The lock is held until the name is
    gone, so whoever takes the file meanwhile waits for it, and sees that it is.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
