"""Writing that survives a crash: flushed files and folders, atomic replacement, and words when the disk is full."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ringmoe.errors import CheckpointError
from ringmoe.faults import point


def flush(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    point(f"flush {path.name}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a small file and forces it to the disk."""
    point(f"write {path.name}")
    path.write_text(text, encoding="utf-8")
    flush(path)


def replace_text(path: Path, text: str) -> None:
    """Replaces a small file so that a reader sees the old text or the new one, never a part."""
    fresh = path.with_name(f"{path.name}.tmp")
    write_text(fresh, text)
    rename(fresh, path)


def rename(path: Path, target: Path) -> None:
    """Gives a file, or a folder, another name in the same folder, for good; a file that has it already is replaced."""
    point(f"rename {path.name}")
    path.replace(target)
    flush(target.parent)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hexadecimal text, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_size(num_bytes: float) -> str:
    """Bytes for people: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def free_bytes(folder: Path) -> int:
    """Bytes that are free where ``folder`` lies, or will lie once it is made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuses to start writing what cannot fit.

    Raises:
        CheckpointError: Fewer than ``num_bytes`` are free where ``folder`` lies.
    """
    free = free_bytes(folder)
    if free < num_bytes:
        raise CheckpointError(
            f"{folder}: {readable_size(num_bytes)} are needed but {readable_size(free)} are free there; "
            "make room or choose another folder"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write into words that say where, why and what is left.

    Raises:
        CheckpointError: The body raised an ``OSError`` or a ``SafetensorError``.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {error} ({readable_size(free_bytes(path))} free there). "
            "Nothing that was complete has been touched"
        ) from error
