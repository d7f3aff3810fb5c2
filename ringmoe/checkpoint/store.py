"""The store: a folder of safetensors files with one tensor for each global name, written once and read lazily.

Promises: a checkpoint appears whole or not at all (``<name>.tmp``, flushed, manifest last, renamed); any damaged byte,
missing or truncated file is named; nothing is ever unpickled; writing holds one file's worth of tensors in memory and
reading one tensor.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ringmoe.checkpoint.disk import flush, rename, sha256_of, write_text, writing
from ringmoe.checkpoint.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    Table,
    TensorEntry,
    parse,
    read_manifest,
    read_text,
    write_manifest,
)
from ringmoe.errors import CheckpointError
from ringmoe.faults import point

Kind = Literal["weights", "optimizer"]
CONFIG_FILE = "config.json"
TRAINER_FILE = "trainer.json"
CARD_FILE = "README.md"
MAX_FILE_BYTES = 512 * 1024**2
_log = logging.getLogger(__name__)


class ShareWriter:
    """Writes the tensors of one rank into a folder, as files of bounded size.

    File ``n`` of rank ``r`` in a world of ``w`` is number ``r + n * w``, so ranks never meet in a name.

    Args:
        folder: An existing folder that is not a checkpoint yet.
        rank: This rank.
        world: Number of ranks that write into the folder.
        max_file_bytes: A file is closed before it would grow beyond this (one tensor always fits).
    """

    def __init__(self, folder: Path, *, rank: int = 0, world: int = 1, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._folder = folder
        self._rank, self._world = rank, world
        self._max_file_bytes = max_file_bytes
        self._pending: dict[Kind, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        self._pending_bytes: dict[Kind, int] = {"weights": 0, "optimizer": 0}
        self._num_files: dict[Kind, int] = {"weights": 0, "optimizer": 0}
        self._table = Table()

    def add(self, name: str, tensor: Tensor, kind: Kind = "weights") -> None:
        """Takes one tensor; it reaches the disk when its file is full, or at ``close``.

        Raises:
            ValueError: The name was added before (a fault of the caller).
        """
        pending = self._pending[kind]
        if name in self._table.tensors or any(name in waiting for waiting in self._pending.values()):
            raise ValueError(f"tensor {name} was added twice")
        if pending and self._pending_bytes[kind] + tensor.nbytes > self._max_file_bytes:
            self._write(kind)
        tensor = tensor.detach().cpu()
        # a slice would keep the whole stack that it was cut from in memory until its file is written
        is_slice = tensor.untyped_storage().nbytes() > tensor.nbytes
        pending[name] = tensor.clone(memory_format=torch.contiguous_format) if is_slice else tensor.contiguous()
        self._pending_bytes[kind] += tensor.nbytes

    def close(self) -> Table:
        """Writes what is waiting and returns the table of all files and tensors of this rank."""
        for kind, pending in self._pending.items():
            if pending:
                self._write(kind)
        return self._table

    def _write(self, kind: Kind) -> None:
        file = f"{kind}-{self._rank + self._num_files[kind] * self._world:05d}.safetensors"
        path, pending = self._folder / file, self._pending[kind]
        with writing(path):
            point(f"write {path.name}")
            save_file(pending, path)
            flush(path)
            self._table.files[file] = FileEntry(path.stat().st_size, sha256_of(path))
        for name, tensor in pending.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._table.tensors[name] = TensorEntry(file, dtype, tuple(tensor.shape))
        pending.clear()
        self._pending_bytes[kind] = 0
        self._num_files[kind] += 1


def finish(
    folder: Path,
    final: Path,
    table: Table,
    documents: Mapping[str, Mapping[str, Any]],
    *,
    step: int | None = None,
    topology: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Makes a folder of written tensors a checkpoint: documents, manifest, flush, rename.

    Args:
        folder: The temporary folder, on the same file system as ``final``.
        final: The checkpoint's name; a complete checkpoint that has it already is replaced.
        table: All files and tensors in ``folder``.
        documents: JSON files by name: ``config.json``, ``trainer.json`` and others.
        step: See ``Manifest``.
        topology: See ``Manifest``.
        card: Text of the model card. It is for people, who may edit it: the manifest does not list it.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    with writing(final):
        if card is not None:
            write_text(folder / CARD_FILE, card)
        for file, values in documents.items():
            path = folder / file
            write_text(path, json.dumps(values, indent=1) + "\n")
            table.files[file] = FileEntry(path.stat().st_size, sha256_of(path))
        manifest = Manifest(files=table.files, tensors=table.tensors, step=step, topology=dict(topology or {}))
        write_manifest(folder, manifest)
        flush(folder)
        replaced = final.with_name(f"{final.name}.old")
        if final.exists():
            rename(final, replaced)
        rename(folder, final)
        if replaced.exists():
            remove(replaced)


def remove(path: Path) -> None:
    """Deletes a checkpoint, its manifest first, so that what an interruption leaves is not taken for good.

    What cannot be deleted is said, and no error.
    """
    point(f"delete {path.name}")
    with suppress(OSError):
        (path / MANIFEST_FILE).unlink()
    point(f"delete the rest of {path.name}")
    try:
        shutil.rmtree(path)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)  # all that can be
        if os.path.lexists(path):
            _log.warning("%s takes room and cannot be deleted, delete it by hand: %s", path, error)


class CheckpointWriter:
    """Writes a checkpoint from one process; leaving the ``with`` block without ``commit`` leaves nothing behind.

    Args:
        path: The checkpoint's folder, which must not exist yet.
        max_file_bytes: Largest size of a tensor file, and of what is held in memory.

    Raises:
        CheckpointError: ``path`` exists, or its parent folder cannot be written.
    """

    def __init__(self, path: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        if path.exists():
            raise CheckpointError(f"{path} exists already; choose another name or delete it")
        self.path = path
        self._folder = path.with_name(f"{path.name}.tmp")
        with writing(path):
            remove(self._folder)
            self._folder.mkdir(parents=True)
        self._share = ShareWriter(self._folder, max_file_bytes=max_file_bytes)

    def add(self, name: str, tensor: Tensor, kind: Kind = "weights") -> None:
        """Adds one tensor under its global name.

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        self._share.add(name, tensor, kind)

    def commit(
        self,
        *,
        config: Mapping[str, Any],
        trainer: Mapping[str, Any] | None = None,
        step: int | None = None,
        documents: Mapping[str, Mapping[str, Any]] | None = None,
        card: str | None = None,
    ) -> None:
        """Writes what is left and lets the checkpoint appear under its name.

        Args:
            config: Contents of ``config.json``: family, model and inputs.
            trainer: Contents of ``trainer.json``; None for a model that is not in training.
            step: Optimiser steps taken, if known.
            documents: Further JSON files by name.
            card: See ``finish``.

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        files = {CONFIG_FILE: config, **(documents or {})}
        if trainer is not None:
            files[TRAINER_FILE] = trainer
        finish(self._folder, self.path, self._share.close(), files, step=step, card=card)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove(self._folder)


class CheckpointReader:
    """A checkpoint on disk. Sizes are checked at once, contents when they are read or by ``verify``.

    Args:
        path: The checkpoint's folder.

    Raises:
        CheckpointError: It is incomplete, a file is missing or has another size, or a JSON file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        wrong = [trouble for file in self.manifest.files if (trouble := self._size_trouble(file))]
        if wrong:
            raise _damaged(path, wrong)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Global names of all weights."""
        return tuple(name for name, entry in self.manifest.tensors.items() if entry.file.startswith("weights-"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all files of weights."""
        return sum(entry.bytes for file, entry in self.manifest.files.items() if file.startswith("weights-"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``: format, family, model and inputs."""
        return self.document(CONFIG_FILE)

    @cached_property
    def trainer(self) -> dict[str, Any] | None:
        """``trainer.json``, or None for a model that is not in training."""
        return self.document(TRAINER_FILE) if TRAINER_FILE in self.manifest.files else None

    def document(self, file: str) -> dict[str, Any]:
        """One of the JSON files, its checksum verified.

        Raises:
            CheckpointError: It is not there, or it is damaged.
        """
        if file not in self.manifest.files:
            raise CheckpointError(f"{self.path} has no {file}")
        self.verify((file,))
        try:
            values = parse(read_text(self.path / file))
        except (OSError, ValueError) as error:
            raise _damaged(self.path, [f"{file} cannot be read: {error}"]) from error
        if not isinstance(values, dict):
            raise _damaged(self.path, [f"{file} holds a {type(values).__name__}"])
        return values

    def tensor(self, name: str) -> Tensor:
        """Reads one tensor; only its pages of the file are touched, and they are given back with the tensor.

        Raises:
            CheckpointError: No such tensor, or the file is not what the manifest says.
        """
        entry = self.manifest.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        with self._reading(entry.file), safe_open(self.path / entry.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        if tuple(tensor.shape) != entry.shape or tensor.dtype != getattr(torch, entry.dtype, None):
            raise _damaged(self.path, [f"{entry.file}: {name} is {tensor.dtype} {tuple(tensor.shape)}, not {entry}"])
        return tensor

    def verify(self, files: Sequence[str] | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Compares files with their checksums.

        Args:
            files: Names of files; None for all.
            progress: Called with the bytes of each file once it is checked.

        Raises:
            CheckpointError: Names every file that is damaged, truncated or missing.
        """
        wrong = []
        for file in self.manifest.files if files is None else files:
            trouble = self._size_trouble(file)
            if trouble is None:
                with self._reading(file):
                    if sha256_of(self.path / file) != self.manifest.files[file].sha256:
                        trouble = f"{file} has another checksum: at least one byte changed"
            if trouble is not None:
                wrong.append(trouble)
            elif progress is not None:
                progress(self.manifest.files[file].bytes)
        if wrong:
            raise _damaged(self.path, wrong)

    def _size_trouble(self, file: str) -> str | None:
        """What is wrong with a file's size, if anything."""
        path, expected = self.path / file, self.manifest.files[file].bytes
        if not path.is_file():
            return f"{file} is missing"
        found = path.stat().st_size
        return None if found == expected else f"{file} has {found} bytes instead of {expected}"

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise _damaged(self.path, [f"{file} cannot be read: {error}"]) from error


def _damaged(path: Path, troubles: Sequence[str]) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {'; '.join(troubles)}. Take another checkpoint or copy it again")
