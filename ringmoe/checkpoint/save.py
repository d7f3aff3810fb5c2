"""Saving a run: every rank writes the tensors that it owns, rank 0 writes the manifest and lets the checkpoint appear.

The order is what makes it safe: tensor files, flush, documents, manifest, flush, rename, ``latest``, and only then are
older checkpoints deleted. Whatever is killed when, the newest complete checkpoint is still there.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ringmoe.checkpoint.disk import writing
from ringmoe.checkpoint.manifest import Table
from ringmoe.checkpoint.ranks import on_first, rank, together
from ringmoe.checkpoint.runs import Kept, point_latest, recover, remove_old, step_folder
from ringmoe.checkpoint.state import Stateful, TrainerState
from ringmoe.checkpoint.store import CONFIG_FILE, MAX_FILE_BYTES, TRAINER_FILE, ShareWriter, finish, remove
from ringmoe.config import from_dict, to_dict
from ringmoe.distributed.collectives import world_size
from ringmoe.errors import CheckpointError
from ringmoe.naming import canonical_entries

Tensors = Iterable[tuple[str, Mapping[str, Tensor]]]
"""Global names, each with its ``weight`` and moments."""
_KEPT = Kept()


def save_checkpoint(
    run: Path,
    engine: Stateful,
    state: TrainerState,
    *,
    config: Mapping[str, Any],
    kept: Kept = _KEPT,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Path:
    """Saves a run as ``RUN/checkpoints/step-...``. Collective: all ranks call it with the same arguments.

    Args:
        run: The run's folder, on a file system that all ranks see.
        engine: Holds weights and moments.
        state: Where the run stands.
        config: Contents of ``config.json``: format, family, model and inputs.
        kept: Which checkpoints stay.
        documents: Further JSON files by name, for example ``usage.json``.
        max_file_bytes: Largest size of a tensor file, and of what a rank holds for each kind of tensor.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: A rank could not write; all ranks raise it, and older checkpoints are as they were.
    """
    files = files_of(state, config, documents)
    tensors = engine.state_of(canonical_entries(engine.model))
    return write_checkpoint(
        run, state.step, tensors, files, to_dict(engine.topology), kept=kept, max_file_bytes=max_file_bytes
    )


def files_of(
    state: TrainerState, config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Mapping[str, Any]]:
    """Contents of a checkpoint's JSON files by their names."""
    return {CONFIG_FILE: config, TRAINER_FILE: state.to_dict(), **(documents or {})}


def write_checkpoint(
    run: Path,
    step: int,
    tensors: Tensors,
    files: Mapping[str, Mapping[str, Any]],
    topology: Mapping[str, Any],
    *,
    kept: Kept,
    max_file_bytes: int = MAX_FILE_BYTES,
    group: Any = None,
) -> Path:
    """Writes a checkpoint, from whatever thread. Collective; see ``save_checkpoint``.

    Args:
        run: The run's folder.
        step: Optimiser steps taken.
        tensors: Those that this rank owns; exhausted in any case.
        files: Contents of the JSON files.
        topology: For the manifest.
        kept: Which checkpoints stay.
        max_file_bytes: Largest size of a tensor file.
        group: The process group of all ranks over which they agree; None for the one of the job.

    Raises:
        CheckpointError: A rank could not write; all ranks raise it, and older checkpoints are as they were.
    """
    final = step_folder(run, step)
    folder = final.with_name(f"{final.name}.tmp")

    def prepare() -> None:
        with writing(final):
            recover(run)
            folder.mkdir(parents=True)

    def complete(tables: list[Any]) -> None:
        table = Table()
        for of_rank in tables:
            table.add(from_dict(Table, of_rank))
        finish(folder, final, table, files, step=step, topology=topology)
        with writing(final):
            point_latest(run, final)
            remove_old(run, kept)

    try:
        on_first(prepare, group)
        tables = together(lambda: to_dict(_write_share(folder, tensors, max_file_bytes)), group)
        on_first(lambda: complete(tables), group)
    except CheckpointError:
        if rank() == 0:
            remove(folder)
        raise
    return final


def _write_share(folder: Path, tensors: Tensors, max_file_bytes: int) -> Table:
    """The tensors that this rank owns."""
    share = ShareWriter(folder, rank=rank(), world=world_size(), max_file_bytes=max_file_bytes)
    failed: CheckpointError | None = None
    for name, state in tensors:
        if failed is not None:
            continue  # to the end all the same: the other ranks gather their state together with this one
        try:
            for kind, tensor in state.items():
                if kind == "weight":
                    share.add(name, tensor)
                else:
                    share.add(f"{name}.{kind}", tensor, kind="optimizer")
        except CheckpointError as error:
            failed = error
    if failed is not None:
        raise failed
    return share.close()
