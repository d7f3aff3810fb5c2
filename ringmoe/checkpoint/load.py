"""Resuming a run: the newest whole checkpoint, verified byte by byte, of the same run and no other."""

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ringmoe.checkpoint.disk import writing
from ringmoe.checkpoint.ranks import on_first, rank, together
from ringmoe.checkpoint.runs import recover, set_aside, step_folders, step_of
from ringmoe.checkpoint.state import MOMENTS, Stateful, TrainerState
from ringmoe.checkpoint.store import CheckpointReader, remove
from ringmoe.distributed.collectives import world_size
from ringmoe.errors import CheckpointError
from ringmoe.faults import point

_log = logging.getLogger(__name__)


def load_latest(
    run: Path,
    engine: Stateful,
    *,
    config: Mapping[str, Any],
    seed: int,
    data_fingerprint: str,
    before: int | None = None,
) -> TrainerState | None:
    """Takes a run up where its newest whole checkpoint left it. Collective: all ranks call it with the same arguments.

    A checkpoint that is damaged is set aside with a loud message, and the one before it is taken.

    Args:
        run: The run's folder.
        engine: Receives weights and moments; its world, expert-parallel size and ZeRO stage may be others than saved.
        config: Contents of ``config.json`` as this run would write it.
        seed: This run's seed.
        data_fingerprint: Of this run's shards.
        before: Takes no checkpoint of this step or a later one; None takes the newest whole one.

    Returns:
        Where the run stands, or None if it has no checkpoint yet.

    Raises:
        CheckpointError: There are checkpoints but none is whole, or the newest whole one is of another run.
    """
    reader = _newest_whole(run, before)
    if reader is None:
        return None
    if reader.trainer is None:
        raise CheckpointError(
            f"{reader.path} has no trainer.json: it was made for use, and training cannot go on from it"
        )
    state = TrainerState.from_dict(reader.trainer, where=f"{reader.path / 'trainer.json'}")
    found = {**reader.config, "seed": state.seed, "data fingerprint": state.data_fingerprint}
    _check_same(reader.path, found, {**config, "seed": seed, "data fingerprint": data_fingerprint})

    def saved(name: str) -> Mapping[str, Tensor]:
        return {"weight": reader.tensor(name), **{kind: reader.tensor(f"{name}.{kind}") for kind in MOMENTS}}

    point("load")
    engine.load_state(saved, state.step if state.updates is None else state.updates)
    return state


def drop_newer(run: Path, step: int) -> None:
    """Deletes the checkpoints after a step, newest first: the run goes on from there with other data. Collective.

    Raises:
        CheckpointError: It cannot be done.
    """

    def drop() -> None:
        with writing(run):
            for folder in step_folders(run):
                if step_of(folder) > step:
                    remove(folder)

    on_first(drop)


def _newest_whole(run: Path, before: int | None) -> CheckpointReader | None:
    """The newest checkpoint whose every byte is right; the ranks share the reading."""

    def candidates() -> list[str]:
        with writing(run):
            recover(run)
        return [str(folder) for folder in step_folders(run) if before is None or step_of(folder) < before]

    folders = [Path(folder) for folder in on_first(candidates)]
    damaged: list[Path] = []
    troubles: list[str] = []
    for folder in folders:
        try:
            together(partial(_verify_share, folder))
        except CheckpointError as error:
            damaged.append(folder)
            troubles.append(str(error))
            continue
        if damaged:
            names = on_first(lambda: [set_aside(path).name for path in damaged])
            if rank() == 0:
                _log.warning("%s. Going on from %s; set aside: %s", "; ".join(troubles), folder, ", ".join(names))
        return CheckpointReader(folder)
    if troubles:
        raise CheckpointError(
            f"{run} has checkpoints but none is whole: {'; '.join(troubles)}. To start anew, choose another folder"
        )
    return None


def _verify_share(folder: Path) -> None:
    """Checks all sizes, and the contents of every n-th file of a world of n ranks."""
    reader = CheckpointReader(folder)
    reader.verify(sorted(reader.manifest.files)[rank() :: world_size()])


def _check_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses to go on with another model, other inputs, another seed or other data."""
    ours, theirs = dict(_leaves(expected)), dict(_leaves(found))
    differences = [
        f"{name} is {_brief(theirs.get(name))} in the checkpoint, {_brief(ours.get(name))} in this run"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if differences:
        more = f" and {len(differences) - 5} more differences" if len(differences) > 5 else ""
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(differences[:5])}{more}. Go back to its settings, or choose "
            "another folder for a new run"
        )


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The JSON text of every value of nested mappings under its dotted name; lists and empty mappings are values."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(values)


def _brief(text: str | None) -> str:
    if text is None:
        return "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."
