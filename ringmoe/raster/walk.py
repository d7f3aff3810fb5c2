"""Which files there are below what somebody named."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringmoe.errors import SceneError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as a path it has lost one of its slashes


@dataclass(frozen=True)
class FoundFile:
    """A file, or a folder that cannot be listed.

    Attributes:
        path: Where it is, absolute.
        name: Relative to the deepest folder that holds all that was named.
        explicit: It was named itself.
    """

    path: Path
    name: str
    explicit: bool


def base_of(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of ``paths``; names of scenes are relative to it."""
    return Path(os.path.commonpath([Path(os.path.abspath(path)).parent for path in paths])) if paths else Path()


def walk(paths: Sequence[Path]) -> Iterator[FoundFile]:
    """Every file once: those that were named, then those in folders in sorted order.

    Raises:
        SceneError: A path does not exist.
    """
    for path in paths:
        if not path.exists():
            fault = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
            if _URL.match(str(path)):
                fault += " on this machine, and scenes are not read by URL (shards are): copy or mount them"
            raise SceneError(f"{path} {fault}; name a scene or a folder of scenes")
    absolute = [Path(os.path.abspath(path)) for path in paths]
    base = base_of(paths)
    named = [path for path in absolute if not path.is_dir()]
    found = sorted(file for path in absolute if path.is_dir() for file in _files(path))
    seen: set[str] = set()
    for file, explicit in [(file, True) for file in named] + [(file, False) for file in found]:
        real = os.path.realpath(file)  # unlike Path.resolve it has no objection to a link to itself
        if real not in seen:
            seen.add(real)
            yield FoundFile(file, file.relative_to(base).as_posix(), explicit)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, and folders that cannot be listed; linked folders are followed, each once."""
    seen: set[str] = set()
    closed: list[Path] = []
    for parent, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda error: closed.append(Path(error.filename))
    ):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()  # a link that leads back
            continue
        seen.add(real)
        yield from (Path(parent, file) for file in files)
    yield from closed
