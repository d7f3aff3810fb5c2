"""Where a folder of shards lies, on this machine or elsewhere by URL, and the few things that reading asks of it.

``folder_at`` tells which. A local folder is read with the system's own calls; ``ringmoe.data.remote`` does the same
over HTTP and object stores. Nothing here touches the network unless a URL was named.
"""

import errno
import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ringmoe.data.files import OpenFiles
from ringmoe.errors import ConfigError, ShardError, TileError

if TYPE_CHECKING:
    from ringmoe.data.remote.folder import RemoteFolder

Location = str | Path
"""A folder on this machine, or a URL."""

REPAIR = "Copy the folder again, or build the shards again"
RENEWALS = 3  # how often bytes with a wrong checksum are read again where they came over a network
MOST_WAIT = 120.0  # seconds that are waited where the other side asks for it
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NO_PLACES = ("pipe:", "file:")  # what other readers of tars take for a command or a folder


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the folder.

    Attributes:
        name: Path relative to the folder.
        bytes: Size.
        sha256: Checksum.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """How shards that are named by URL are read; local folders need none of it.

    Attributes:
        cache: Folder on this machine that keeps what was read, for all processes and later runs; None keeps nothing.
        cache_bytes: Most bytes of the cache; what was used longest ago makes room.
        connections: Requests of one process that are under way at the same time.
        attempts: How often a request is tried before the run ends with an error.
        timeout: Seconds without a byte after which an attempt has failed.
    """

    cache: Path | None = None
    cache_bytes: int = 32 << 30
    connections: int = 16
    attempts: int = 8
    timeout: float = 30.0

    @property
    def patience(self) -> float:
        """Seconds after which a request has certainly come back or failed for good."""
        return self.attempts * (self.timeout + MOST_WAIT)

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        for name in ("cache_bytes", "connections", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"remote.{name} must be at least 1; it is {getattr(self, name)}")
        if not self.timeout > 0:
            raise ConfigError(f"remote.timeout must be above 0 seconds; it is {self.timeout}")


class Shards(Protocol):
    """The shards of one modality and split, open for reading by position."""

    def fill(
        self, shards: Sequence[int], offsets: Sequence[int], targets: Sequence[memoryview], names: Sequence[str]
    ) -> Iterator[slice]:
        """Reads many ranges, in whatever order is best, and yields which of their targets are full.

        Args:
            shards: Which shard each range lies in.
            offsets: First byte of each.
            targets: Where its bytes go, and by their size how many there are.
            names: What each is called in messages.

        Raises:
            ShardError: One cannot be read in full.
        """

    def renew(self, shard: int, offset: int, target: memoryview, name: str) -> bool:
        """Reads a range whose content was wrong from its source; False where that is where it came from.

        Raises:
            ShardError: It cannot be read.
        """

    def close(self) -> None:
        """Lets go of what is held; a later read takes it again."""


@runtime_checkable
class Folder(Protocol):
    """A folder of shards."""

    @property
    def name(self) -> str:
        """Its last part, the beginning of the names of its samples."""

    def where(self, name: str) -> str:
        """What one of its files is called in messages."""

    def read(self, name: str) -> bytes:
        """A small file, whole.

        Raises:
            OSError: It is on this machine and cannot be read.
            ShardError: It is elsewhere and cannot be read.
        """

    def on_disk(self, entry: FileEntry) -> AbstractContextManager[Path]:
        """A path under which a file can be memory-mapped; the map stays good when the context ends.

        Raises:
            ShardError: It had to be fetched, and could not be.
        """

    def check_present(self, shards: Sequence[FileEntry]) -> None:
        """Looks, where that is quick, whether the shards of a modality and split are there.

        Raises:
            ShardError: One is not; the message names it.
        """

    def check_sizes(self, entries: Iterable[FileEntry]) -> None:
        """Looks, where that is quick, whether files are there with the size that they were written with.

        Raises:
            ShardError: One is not; the message names it.
        """

    def fault(self, entry: FileEntry) -> str | None:
        """Reads a file and says what is wrong with it; None when its size and checksum are those that were written."""

    def open(self, shards: Sequence[FileEntry]) -> Shards:
        """Opens shards for reading by position."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine.

    Attributes:
        path: The folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.absolute().name

    def where(self, name: str) -> str:
        """The path of a file."""
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        """A small file, whole."""
        return self._regular(name).read_bytes()

    def _regular(self, name: str) -> Path:
        """The path of a file; a named pipe in its place would be waited for without end."""
        path = self.path / name
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file")
        return path

    def on_disk(self, entry: FileEntry) -> AbstractContextManager[Path]:
        """The file itself."""
        return nullcontext(self._regular(entry.name))

    def check_present(self, shards: Sequence[FileEntry]) -> None:
        """Looks whether shards of one folder are there: one listing, however many there are."""
        parent = (self.path / shards[0].name).parent
        try:
            found = set(os.listdir(parent))
        except OSError as error:
            raise ShardError(f"{parent} is missing or cannot be read: {error.strerror}. {REPAIR}") from error
        missing = [shard.name for shard in shards if shard.name.rpartition("/")[2] not in found]
        if missing:
            others = f" and {len(missing) - 1} more shards are" if len(missing) > 1 else " is"
            raise ShardError(f"{self.path / missing[0]}{others} missing. {REPAIR}")

    def descriptor(self, entry: FileEntry) -> int:
        """A descriptor to read a file from, if it has the size that it was written with.

        Raises:
            TileError: It has not; the message names it.
            ShardError: It cannot be opened.
        """
        path = self.path / entry.name
        try:
            # a named pipe in place of the file would be waited for without end otherwise
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ShardError(f"{path} is missing or cannot be read: {error.strerror}. {REPAIR}") from error
        if (size := os.fstat(descriptor).st_size) != entry.bytes:
            os.close(descriptor)
            raise TileError(f"{path} has {size:,} bytes, but was written with {entry.bytes:,}. {REPAIR}")
        return descriptor

    def check_sizes(self, entries: Iterable[FileEntry]) -> None:
        """Looks whether files are there with the size that they were written with."""
        for entry in entries:
            path = self.path / entry.name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ShardError(f"{path} is missing or cannot be read: {error.strerror}. {REPAIR}") from error
            if size != entry.bytes:
                raise ShardError(f"{path} has {size:,} bytes, but was written with {entry.bytes:,}. {REPAIR}")

    def fault(self, entry: FileEntry) -> str | None:
        """Compares size and checksum of a file with what was written."""
        try:
            if (size := (self.path / entry.name).stat().st_size) != entry.bytes:
                return f"has {size:,} bytes, not {entry.bytes:,}"
            same = file_sha256(self.path / entry.name) == entry.sha256
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None if same else "has another checksum: its content changed"

    def open(self, shards: Sequence[FileEntry]) -> OpenFiles:
        """The shards, none of them opened yet."""
        return OpenFiles(lambda number: self.descriptor(shards[number]))


class _Several:
    """Shards of folders of several kinds, numbered through."""

    def __init__(self, parts: Sequence[tuple[Folder, Sequence[FileEntry]]]) -> None:
        self._parts = [folder.open(shards) for folder, shards in parts]
        self._firsts = [0, *accumulate(len(shards) for _, shards in parts)][:-1]

    def fill(
        self, shards: Sequence[int], offsets: Sequence[int], targets: Sequence[memoryview], names: Sequence[str]
    ) -> Iterator[slice]:
        """Reads ranges folder by folder."""
        numbers = [bisect_right(self._firsts, shard) - 1 for shard in shards]
        for number in sorted(set(numbers)):
            places = [place for place, other in enumerate(numbers) if other == number]
            first = self._firsts[number]
            part = [shards[i] - first for i in places], [offsets[i] for i in places], [targets[i] for i in places]
            for run in self._parts[number].fill(*part, [names[i] for i in places]):
                yield from (slice(place, place + 1) for place in places[run])

    def renew(self, shard: int, offset: int, target: memoryview, name: str) -> bool:
        """Reads a range again where its folder thinks that this helps."""
        number = bisect_right(self._firsts, shard) - 1
        return self._parts[number].renew(shard - self._firsts[number], offset, target, name)

    def close(self) -> None:
        """Closes all of them."""
        for part in self._parts:
            part.close()


def scheme_of(place: Location) -> str | None:
    """The scheme of a URL in lower case; None for a folder on this machine.

    Raises:
        ConfigError: It is neither.
    """
    text = str(place)
    if text.lower().startswith(_NO_PLACES):
        raise ConfigError(
            f"{text!r} is not a place that shards are read from: name a local folder without 'file:', or a URL "
            "(https://host/path, s3://bucket/path); commands (pipe:) are never run"
        )
    if isinstance(place, Path):
        if re.match(r"[a-z0-9]{2,}:/", text):  # two slashes have become one
            raise ConfigError(f"{text!r} is a URL that was made a path; give it as text")
        return None
    found = _URL.match(text)
    return found[1].lower() if found else None


def folder_at(place: Location, remote: RemoteConfig | None = None) -> Folder:
    """The folder at a place; nothing is read yet.

    Args:
        place: A folder on this machine, or a URL.
        remote: How a URL is read.

    Raises:
        ConfigError: The URL is of a kind that is not read, or the package that reads it is not installed.
    """
    if scheme_of(place) is None:
        return LocalFolder(Path(place))
    return remote_folder(_plain(place), remote or RemoteConfig())


@lru_cache
def remote_folder(url: str, config: RemoteConfig) -> "RemoteFolder":
    """One for each URL in a process: all readers share its connections, its copies of manifest and index, its counts.

    Raises:
        ConfigError: See ``folder_at``.
    """
    from ringmoe.data.remote.folder import RemoteFolder

    return RemoteFolder(url, config)


os.register_at_fork(after_in_child=remote_folder.cache_clear)  # threads and connections stay with the parent


def open_shards(parts: Sequence[tuple[Folder, Sequence[FileEntry]]]) -> Shards:
    """The shards of several folders, numbered through, as if they were one folder's.

    Args:
        parts: Each folder with its shards.
    """
    local = [(folder, shard) for folder, shards in parts if isinstance(folder, LocalFolder) for shard in shards]
    if len(local) == sum(len(shards) for _, shards in parts):
        return OpenFiles(lambda number: local[number][0].descriptor(local[number][1]))
    return parts[0][0].open(parts[0][1]) if len(parts) == 1 else _Several(parts)


def remote_folders(places: Iterable[Location], remote: RemoteConfig) -> "list[RemoteFolder]":
    """Those of some places that are URLs, as this process reads them, with the counts of what that has cost."""
    return [remote_folder(_plain(place), remote) for place in places if scheme_of(place) is not None]


def _plain(url: Location) -> str:
    """A URL without slashes at its end."""
    scheme, separator, rest = str(url).partition("://")
    return scheme + separator + rest.rstrip("/")


def file_sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
