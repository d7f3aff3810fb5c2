"""A folder of shards that is named by URL: many ranges at once, each tried again where it fails.

A micro-batch asks for its tiles together. Those that lie side by side in a shard become one request; all requests are
under way at the same time, as many as there may be connections. Randomness plays no part in what is read: only the
pauses between attempts are drawn, so that many ranks do not come back all at once.
"""

import hashlib
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from threading import Event, Lock
from typing import BinaryIO, TypeVar

from ringmoe.data.remote.cache import Cache
from ringmoe.data.remote.counts import BYTES, RENEWED, REPEATED, REQUESTS, Counts
from ringmoe.data.remote.transport import ANOTHER_SIZE, PermanentError, TransientError, connect
from ringmoe.data.storage import MOST_WAIT, FileEntry, RemoteConfig, remote_folder
from ringmoe.errors import ShardError, TileError

T = TypeVar("T", bytes, bytes | bytearray)

_REMEDY = "Is the URL right, and does the server answer? More attempts (--help) bridge a longer outage"
_VERIFY = "`ringmoe shards verify` checks the whole folder"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0  # seconds; each is twice the one before
_SAID_FROM = 4  # the attempt from which waiting is mentioned
_GAP = 16 << 10  # bytes between two tiles that one request takes along: less than another request costs
_MOST_AT_ONCE = 2 << 20  # bytes of a request for several tiles
_COPIES = 3  # how often a file with a wrong checksum is fetched
_PIECE = 8 << 20  # bytes of a request for part of a whole file

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """Bytes of one shard that are fetched together.

    Attributes:
        shard: The shard.
        start: First byte.
        stop: Byte behind the last.
        members: Which of the wanted ranges lie in it.
    """

    shard: FileEntry
    start: int
    stop: int
    members: list[int]


class RemoteFolder:
    """A folder of shards at a URL; all readers of a process share one.

    Attributes:
        counts: What reading from it has cost so far.
        cache: What keeps it on this machine, if anything does.
    """

    def __init__(self, url: str, config: RemoteConfig) -> None:
        """Opens the cache; nothing is requested yet.

        Raises:
            ConfigError: The URL is of a kind that cannot be read here, or the cache cannot be used.
        """
        self._url, self._config = url, config
        self._transport = connect(url, config)
        self.counts = Counts()
        self.cache = Cache(config.cache, config.cache_bytes, self.counts) if config.cache else None
        self._threads = ThreadPoolExecutor(config.connections, thread_name_prefix="remote")
        self._lock = Lock()
        self._small: dict[str, bytes] = {}
        self._copies: dict[str, BinaryIO] = {}

    def __reduce__(self) -> tuple[Callable[[str, RemoteConfig], "RemoteFolder"], tuple[str, RemoteConfig]]:
        """A copy, and what another process gets of it, is what its URL has there, with connections of its own."""
        return remote_folder, (self._url, self._config)

    def __str__(self) -> str:
        return self._url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self._url.rpartition("/")[2]

    def where(self, name: str) -> str:
        """The URL of a file."""
        return self._transport.url(name)

    def read(self, name: str) -> bytes:
        """A small file, whole; it is fetched once, so that all readers of a process see the same."""
        with self._lock:
            if name not in self._small:
                self._small[name] = self._persist(lambda: self._transport.whole(name), self.where(name), Event())
            return self._small[name]

    def on_disk(self, entry: FileEntry) -> AbstractContextManager[Path]:
        """A path of a copy on this machine: in the cache, else in a file without a name that ends with the process."""
        with self._lock:
            path = self.cache.file(entry, lambda file: self._fetch(entry, file)) if self.cache else None
            if path is None:
                if entry.sha256 not in self._copies:
                    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is kept open)
                    self._fetch(entry, file)
                    self._copies[entry.sha256] = file
                path = Path(f"/proc/self/fd/{self._copies[entry.sha256].fileno()}")
        return nullcontext(path)

    def check_present(self, shards: Sequence[FileEntry]) -> None:
        """A shard that is missing is found when it is read, like one of another size."""

    def check_sizes(self, entries: Iterable[FileEntry]) -> None:
        """Every answer says how large its shard is; asking for each of thousands first would take minutes."""

    def fault(self, entry: FileEntry) -> str | None:
        """Reads a file and compares its checksum.

        Raises:
            ShardError: The server is out of reach, which says nothing of the file.
        """
        try:
            with Path(os.devnull).open("wb") as nowhere:
                whole = self._copy(entry, nowhere)
        except ShardError as error:
            cause = error.__cause__
            if isinstance(cause, TransientError) and cause.kind != ANOTHER_SIZE:
                raise
            return f"cannot be read: {cause}"
        return None if whole else "has another checksum: its content changed"

    def open(self, shards: Sequence[FileEntry]) -> "RemoteShards":
        """The shards; nothing is requested yet."""
        return RemoteShards(self, shards)

    def fetch(self, entry: FileEntry, start: int, stop: int, what: str, abandoned: Event) -> bytes | bytearray:
        """Some bytes of a file, after as many attempts as it takes.

        Args:
            entry: The file.
            start: First byte.
            stop: Byte behind the last.
            what: What is called for in messages.
            abandoned: Is set when nobody wants them any more.

        Raises:
            ShardError: They cannot be had.
        """
        where = f"{what}: bytes {start}-{stop - 1} of {self.where(entry.name)}"
        if stop > entry.bytes:
            raise TileError(f"{where}, which has only {entry.bytes}: the index is damaged. {_VERIFY}")
        return self._persist(
            lambda: self._transport.part(entry.name, start, stop - start, entry.bytes), where, abandoned
        )

    def submit(self, work: Callable[[_Request], list[int]], request: _Request) -> Future[list[int]]:
        """Has work done by one of the threads that requests are made in."""
        return self._threads.submit(work, request)

    def _copy(self, entry: FileEntry, file: BinaryIO) -> bool:
        """Writes a whole file, again where its checksum is wrong; False where it stays so."""
        for _ in range(_COPIES):
            digest = hashlib.sha256()
            file.seek(0)
            for piece in self._pieces(entry):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() == entry.sha256:
                return True
            self.counts.add(RENEWED)
        return False

    def _fetch(self, entry: FileEntry, file: BinaryIO) -> None:
        """Writes a whole file."""
        if not self._copy(entry, file):
            raise ShardError(f"{self.where(entry.name)} is not the file that was written (wrong checksum). {_VERIFY}")
        file.flush()

    def _pieces(self, entry: FileEntry) -> Iterator[bytes | bytearray]:
        """A whole file from start to end, read ahead by as many requests as there are connections."""
        abandoned = Event()
        ahead: deque[Future[bytes | bytearray]] = deque()
        try:
            for start in range(0, entry.bytes, _PIECE):
                stop = min(start + _PIECE, entry.bytes)
                ahead.append(self._threads.submit(self.fetch, entry, start, stop, self.name, abandoned))
                if len(ahead) == self._config.connections:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            abandoned.set()
            for future in ahead:
                future.cancel()

    def _persist(self, attempt: Callable[[], T], where: str, abandoned: Event) -> T:
        """Makes attempts, with pauses that grow, until one succeeds."""
        for number in range(1, self._config.attempts + 1):
            self.counts.add(REQUESTS)
            try:
                content = attempt()
            except PermanentError as refusal:
                raise ShardError(f"{where} cannot be read: {refusal}") from refusal
            except TransientError as fault:
                self.counts.add_fault(fault.kind)
                if number == self._config.attempts:
                    raise ShardError(
                        f"{where} cannot be read; attempt {number}, the last, ended so: {fault}. {_REMEDY}"
                    ) from fault
                pause = _pause(number, fault.wait)
                if number >= _SAID_FROM:
                    _log.warning("%s: attempt %d failed: %s; trying again in %.1f s", where, number, fault, pause)
                if abandoned.wait(pause):
                    raise ShardError(f"{where} is no longer wanted") from fault
                self.counts.add(REPEATED)
            else:
                self.counts.add(BYTES, len(content))
                return content
        raise AssertionError("there is at least one attempt")


class RemoteShards:
    """The shards of one modality and split at a URL."""

    def __init__(self, folder: RemoteFolder, shards: Sequence[FileEntry]) -> None:
        self._folder, self._shards = folder, shards

    def fill(
        self, shards: Sequence[int], offsets: Sequence[int], targets: Sequence[memoryview], names: Sequence[str]
    ) -> Iterator[slice]:
        """Reads ranges from the cache, and all others at the same time."""
        cache, entries = self._folder.cache, [self._shards[shard] for shard in shards]
        ready = [i for i, entry in enumerate(entries) if cache and cache.get(entry, offsets[i], targets[i])]
        missing = sorted(set(range(len(entries))) - set(ready), key=lambda i: (shards[i], offsets[i]))
        abandoned = Event()

        def serve(request: _Request) -> list[int]:
            name = names[request.members[0]]
            content = memoryview(self._folder.fetch(request.shard, request.start, request.stop, name, abandoned))
            for i in request.members:
                begin = offsets[i] - request.start
                targets[i][:] = content[begin : begin + len(targets[i])]
                if cache:
                    cache.put(request.shard, offsets[i], targets[i])
            return request.members

        under_way = [self._folder.submit(serve, request) for request in _requests(missing, entries, offsets, targets)]
        try:
            yield from (slice(i, i + 1) for i in ready)
            for future in as_completed(under_way):
                yield from (slice(i, i + 1) for i in future.result())
        finally:
            abandoned.set()
            for future in under_way:
                future.cancel()

    def renew(self, shard: int, offset: int, target: memoryview, name: str) -> bool:
        """Reads a range again, past the cache."""
        entry, cache = self._shards[shard], self._folder.cache
        if cache:
            cache.drop(entry, offset, len(target))
        self._folder.counts.add(RENEWED)
        target[:] = self._folder.fetch(entry, offset, offset + len(target), name, Event())
        if cache:
            cache.put(entry, offset, target)
        return True

    def close(self) -> None:
        """Nothing is held but connections, which other readers of the folder may be using."""


def _requests(
    wanted: Iterable[int], shards: Sequence[FileEntry], offsets: Sequence[int], targets: Sequence[memoryview]
) -> Iterator[_Request]:
    """What is fetched together: neighbours in one shard. ``wanted`` is sorted by shard and offset."""
    open_one: _Request | None = None
    for i in wanted:
        start, stop = offsets[i], offsets[i] + len(targets[i])
        if (
            open_one is not None
            and shards[i] is open_one.shard
            and start - open_one.stop <= _GAP
            and stop - open_one.start <= _MOST_AT_ONCE
        ):
            stop = max(stop, open_one.stop)  # the same tile may be wanted twice
            open_one = _Request(open_one.shard, open_one.start, stop, [*open_one.members, i])
            continue
        if open_one is not None:
            yield open_one
        open_one = _Request(shards[i], start, stop, [i])
    if open_one is not None:
        yield open_one


def _pause(number: int, asked_for: float) -> float:
    """Seconds before the attempt after ``number``: half of a doubling time to all of it, or what was asked for."""
    longest = min(_FIRST_PAUSE * 2 ** (number - 1), _LONGEST_PAUSE)
    return max(SystemRandom().uniform(longest / 2, longest), min(asked_for, MOST_WAIT))
