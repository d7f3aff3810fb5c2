"""Many ranges of many files on this machine, read into memory that is there."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat

from ringmoe.errors import TileError

_MOST_OPEN = 128
_RUN = 1 << 18  # bytes
REMEDY = "`ringmoe shards verify` checks the whole folder; copy the file again, or build the shards again"


class OpenFiles:
    """Descriptors of the files that were read last. Not for two threads at the same time."""

    def __init__(self, open_file: Callable[[int], int]) -> None:
        """Takes what opens a file by its number and gives its descriptor; each is opened when it is first read."""
        self._open_file = open_file
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def __del__(self) -> None:
        """Closes what nobody has closed."""
        self.close()

    def fill(
        self, files: Sequence[int], offsets: Sequence[int], targets: Sequence[memoryview], names: Sequence[str]
    ) -> Iterator[slice]:
        """Reads ranges run by run, and yields which of the targets are full.

        A run is small enough to be found in the processor's cache by whoever looks at it next. What lies in the page
        cache is read first. The disk is asked for all the rest at once before the first of it is waited for: it answers
        many requests in little more time than one.

        Args:
            files: Which file each range lies in.
            offsets: First byte of each.
            targets: Where its bytes go, and by their size how many there are.
            names: What each is called in messages.

        Raises:
            TileError: One cannot be read in full.
        """
        descriptors = self._open(files)
        at, sizes = list(map(descriptors.__getitem__, files)), list(map(len, targets))
        step = max(_RUN // max(sizes, default=1), 1)
        elsewhere = []
        for run in (slice(first, first + step) for first in range(0, len(targets), step)):
            try:
                reading = map(os.preadv, at[run], zip(targets[run], strict=True), offsets[run], repeat(os.RWF_NOWAIT))
                in_memory = list(reading) == sizes[run]
            except (OSError, OverflowError):  # nothing is in memory, or this file system cannot tell, or no file has it
                in_memory = False
            if in_memory:
                yield run
            else:
                elsewhere.append(run)
        for run in elsewhere:
            for descriptor, offset, size in zip(at[run], offsets[run], sizes[run], strict=True):
                with suppress(OSError, OverflowError):  # whoever reads it will say what is wrong
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        for run in elsewhere:
            for descriptor, target, offset, name in zip(at[run], targets[run], offsets[run], names[run], strict=True):
                _read_fully(descriptor, target, offset, name)
            yield run

    def renew(self, file: int, offset: int, target: memoryview, name: str) -> bool:
        """A file of this machine says the same again."""
        return False

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, files: Sequence[int]) -> OrderedDict[int, int]:
        """Descriptors of these files and of some that were read before."""
        for file in (needed := set(files)):
            if file not in self._descriptors:
                self._descriptors[file] = self._open_file(file)
            self._descriptors.move_to_end(file)
        while len(self._descriptors) > max(_MOST_OPEN, len(needed)):
            os.close(self._descriptors.popitem(last=False)[1])
        return self._descriptors


def _read_fully(descriptor: int, target: memoryview, offset: int, name: str) -> None:
    """Reads until the target is full."""
    done = 0
    while done < len(target):
        try:
            num_read = os.preadv(descriptor, (target[done:],), offset + done)
        except (OSError, OverflowError) as error:
            raise TileError(f"{name} cannot be read at byte {offset:,}: {error}. {REMEDY}") from error
        if num_read == 0:
            raise TileError(f"{name} has {len(target)} bytes, of which {done} could be read. {REMEDY}")
        done += num_read
