"""The manifest of a checkpoint: every file with its size and checksum, every tensor with its file; written last.

A folder without a manifest is not a checkpoint, so a reader never takes a half-written one for good. The manifest
carries the checksum of its own text: a single damaged byte anywhere in a checkpoint, this file included, is noticed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringmoe.checkpoint.disk import write_text
from ringmoe.config import from_dict, to_dict
from ringmoe.errors import CheckpointError, ConfigError

FORMAT = 1
MANIFEST_FILE = "manifest.json"
_MOST_BYTES = 256 << 20  # of a JSON file: tens of thousands of tensors take ten million


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, torch dtype (``float32``) and shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """The files and tensors that one rank wrote."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    tensors: dict[str, TensorEntry] = field(default_factory=dict)

    def add(self, other: "Table") -> None:
        """Takes in what another rank wrote.

        Raises:
            ValueError: Two ranks wrote a tensor or a file of the same name (a fault of the caller).
        """
        twice = (self.files.keys() & other.files.keys()) | (self.tensors.keys() & other.tensors.keys())
        if twice:
            raise ValueError(f"written twice: {', '.join(sorted(twice)[:8])}")
        self.files.update(other.files)
        self.tensors.update(other.tensors)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        format: Version of the directory format.
        files: Every file of the directory but the manifest itself and pages for people (model card, report).
        tensors: Every tensor by its global name.
        step: Optimiser steps taken; None for a model that is no longer in training.
        topology: World, expert-parallel size and the like when it was written. Information only: never read back.
    """

    format: int = FORMAT
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]
    step: int | None = None
    topology: dict[str, Any] = field(default_factory=dict)


def _text(values: Mapping[str, Any]) -> str:
    """The one text that these values have, with the checksum of the rest as the last line."""
    plain = {name: value for name, value in values.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    return json.dumps({**plain, "sha256": digest}, indent=1) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and forces it to the disk: from here on the folder is a checkpoint."""
    write_text(folder / MANIFEST_FILE, _text(to_dict(manifest)))


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest and checks that it is whole and points nowhere else.

    Raises:
        CheckpointError: Missing, damaged, of a newer format, or naming files outside of its folder.
    """
    path = folder / MANIFEST_FILE
    try:
        text = read_text(path)
    except FileNotFoundError:
        reason = (
            "its writing was interrupted, or it is not a checkpoint" if folder.is_dir() else "there is no such folder"
        )
        raise CheckpointError(f"{folder} has no {MANIFEST_FILE}: {reason}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    values = _checked_values(path, text)
    try:
        manifest = from_dict(Manifest, values, where=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path} is not a manifest: {error}") from error
    _check_names(path, manifest)
    return manifest


def read_text(path: Path) -> str:
    """A JSON file of a checkpoint, which came from wherever.

    Raises:
        OSError: It cannot be read, or is no file of a size that such a file may have.
        UnicodeDecodeError: It is not text.
    """
    if path.exists() and not (path.is_file() and path.stat().st_size <= _MOST_BYTES):
        raise OSError(f"it is no regular file of at most {_MOST_BYTES >> 20} MiB")
    return path.read_text(encoding="utf-8")


def parse(text: str) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: It is no JSON, or such as would take all memory or the whole stack.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values nest too deeply") from error


def _checked_values(path: Path, text: str) -> dict[str, Any]:
    """The manifest's values, once format and checksum are right."""
    try:
        values = parse(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a manifest: it holds a {type(values).__name__}")
    found = values.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise CheckpointError(f"{path} has format {found}; this version of ringmoe reads up to {FORMAT}: update it")
    if _text(values) != text:
        raise CheckpointError(f"{path} is damaged: its checksum does not fit its text")
    del values["sha256"]
    return values


def _check_names(path: Path, manifest: Manifest) -> None:
    """A checkpoint is one flat folder: a path in a manifest is an attack or a mistake, and is refused."""
    for name in manifest.files:
        if name != Path(name).name or name in ("", ".", "..", MANIFEST_FILE) or "\\" in name or "\0" in name:
            raise CheckpointError(f"{path} names the file {name!r}: only plain names inside of its folder are allowed")
    for name, entry in manifest.tensors.items():
        if entry.file not in manifest.files:
            raise CheckpointError(f"{path}: tensor {name} lies in {entry.file!r}, which is not among its files")
