"""Files that are whole or not there."""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PARTIAL = ".partial"  # end of the names of files that are being written, or were when their writer was killed


class DurableFile:
    """A file that is written from start to end and gets its name when it is whole; a context manager.

    Whoever looks sees the old file or all of the new one, also after a power cut. Without ``commit`` nothing is left.
    Until then its name is one that no other process takes: where two write the same file, for want of knowing of each
    other, the later one replaces the earlier one whole.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, path: Path, *, workshop: Path | None = None) -> None:
        """Creates the file under another name.

        Args:
            path: What it is to be called.
            workshop: Folder of the same file system in which it is written; beside ``path`` if None.
        """
        self._path = path
        self._partial = (workshop or path.parent) / f"{path.name}.{secrets.token_hex(4)}{PARTIAL}"
        self._file = self._partial.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Self:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not committed."""
        with suppress(OSError):  # on a full disk the last buffered bytes cannot be written, nor need they be
            self._file.close()
        self._partial.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Checksum of what was written so far."""
        return self._hash.hexdigest()

    def write(self, content: bytes) -> int:
        """Appends; once the file is closed, what a writer above it still flushes goes nowhere."""
        if self._file.closed:
            return len(content)
        self._hash.update(content)
        self.size += len(content)
        return self._file.write(content)

    def commit(self) -> None:
        """Makes the content durable and gives the file its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)
