"""The work folder: what is finished of a result, so that the same command continues after an interruption.

``OUT.work`` lies beside ``OUT``: a journal with one line for each finished part, and the files of the parts. The first
line tells plan and source apart from all others. Once all parts are there, a rename lets the result appear.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringmoe.checkpoint.disk import sha256_of, writing
from ringmoe.checkpoint.manifest import MANIFEST_FILE, Table
from ringmoe.checkpoint.store import CheckpointReader, finish, remove
from ringmoe.compress.apply import Merge
from ringmoe.compress.plan import CompressionPlan
from ringmoe.config import from_dict, to_dict
from ringmoe.data.workfolder import take_lock
from ringmoe.errors import CheckpointError, ConfigError

_FORMAT = 1
_JOURNAL = "journal.jsonl"
_FILES = "files"


@dataclass(frozen=True)
class Part:
    """Some tensors of the result that are written together.

    Attributes:
        index: Number of the part.
        table: Their files.
        merges: What merging did to each weight matrix.
    """

    index: int
    table: Table
    merges: dict[str, Merge] = field(default_factory=dict)


def folder_of(out: Path) -> Path:
    """Where the unfinished work of a result lies."""
    return out.with_name(f"{out.name}.work")


def digest_of(plan: CompressionPlan, reader: CheckpointReader, parts: Sequence[Sequence[str]]) -> str:
    """Tells the work apart from that of any other plan, source, or division into parts."""
    manifest = (reader.path / MANIFEST_FILE).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps([_FORMAT, plan.to_dict(), manifest, parts]).encode()).hexdigest()


class Work:
    """The work folder of one result, held by one process at a time; a context manager.

    Args:
        out: Where the result will appear.
        digest: See ``digest_of``.

    Attributes:
        folder: Where parts are written.
        finished: Finished parts by number, those of earlier sessions with their checksums verified.

    Raises:
        CheckpointError: The folder holds other work, another process works on it, or it cannot be written.
    """

    def __init__(self, out: Path, digest: str) -> None:
        self.out, self._root = out, folder_of(out)
        self.folder = self._root / _FILES
        self.finished: dict[int, Part] = {}
        check_folder(out, digest)
        with writing(self._root):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = (self._root / _JOURNAL).open("a+", encoding="utf-8")
            is_ours = take_lock(self._journal)
        if not is_ours:
            self._journal.close()
            raise CheckpointError(f"{self._root} is in the hands of another process that makes {out}")
        if not _lines(self._root / _JOURNAL):
            self._journal.truncate(0)
            self._say({"digest": digest})
        for part in map(_part, _lines(self._root / _JOURNAL)[1:]):
            files = part.table.files.items()
            paths = [(self.folder / name, entry) for name, entry in files]
            if all(path.is_file() and sha256_of(path) == entry.sha256 for path, entry in paths):
                self.finished[part.index] = part

    def add(self, part: Part) -> None:
        """Notes that a part is finished: its files lie on the disk."""
        self._say(to_dict(part))
        self.finished[part.index] = part

    def commit(self, documents: Mapping[str, Mapping[str, Any]], step: int | None, card: str) -> None:
        """Lets the result appear under its name.

        Args:
            documents: Its JSON files.
            step: See ``Manifest``.
            card: Its model card.

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        table = Table()
        for index in sorted(self.finished):
            table.add(self.finished[index].table)
        finish(self.folder, self.out, table, documents, step=step, card=card)
        remove(self._root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def _say(self, values: Mapping[str, Any]) -> None:
        with writing(self._root):
            # begun on a line of its own, whatever a crash has left of the last one
            self._journal.write(f"\n{json.dumps(values)}")
            self._journal.flush()


def check_folder(out: Path, digest: str) -> int:
    """Makes sure that a work folder, if there is one, belongs to this work.

    Returns:
        Bytes of its finished parts.

    Raises:
        CheckpointError: It holds other work.
    """
    lines = _lines(folder_of(out) / _JOURNAL)
    if lines and lines[0] != {"digest": digest}:
        raise CheckpointError(
            f"{folder_of(out)} holds unfinished work of another plan, or of another checkpoint. Repeat the command "
            "that began it, delete the folder, or choose another name for the result"
        )
    return sum(entry.bytes for line in lines[1:] for entry in _part(line).table.files.values())


def _lines(journal: Path) -> list[dict[str, Any]]:
    """The journal's lines, without what a crash has cut off."""
    values = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        with suppress(ValueError):
            values.append(json.loads(line))
    return values


def _part(values: dict[str, Any]) -> Part:
    try:
        return from_dict(Part, values, where=_JOURNAL)
    except ConfigError as error:
        raise CheckpointError(f"{error}: another version of ringmoe wrote it; delete the work folder") from error
