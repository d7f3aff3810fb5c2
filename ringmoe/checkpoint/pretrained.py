"""Loading weights by global name, whether they come from training, from compression or from a release.

The names know no rank, so the weights of any run load into a model of any expert-parallel size: each rank reads only
the experts that it holds.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.distributed.collectives import gather_json
from ringmoe.errors import CheckpointError
from ringmoe.naming import canonical_entries

ModelT = TypeVar("ModelT", bound=nn.Module)


class Mismatch(NamedTuple):
    """Names on which a model and a checkpoint differ.

    Attributes:
        missing: Weights of the model that the checkpoint lacks.
        unexpected: Weights of the checkpoint that the model has no place for.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint, or of a run's newest one: family, model and inputs.

    Raises:
        CheckpointError: See ``open_checkpoint``.
    """
    return open_checkpoint(path).config


def load_model(path: Path, build: Callable[[dict[str, Any]], ModelT]) -> ModelT:
    """A model with the weights of a checkpoint, or of a run's newest one.

    Args:
        path: The folder of a checkpoint or of a run.
        build: Makes the model from the contents of ``config.json``, for example with ``ringmoe.models.config_from``
            and ``ringmoe.models.build_model``.

    Raises:
        CheckpointError: See ``open_checkpoint`` and ``load_weights``.
    """
    reader = open_checkpoint(path)
    model = build(reader.config)
    load_weights(model, reader)
    return model


@torch.no_grad()
def load_weights(model: nn.Module, reader: CheckpointReader, *, strict: bool = True) -> Mismatch:
    """Copies weights into a model by global name, converted to the model's types; one tensor is held at a time.

    With several ranks all of them call it, as each knows the names of its own experts only.

    Args:
        model: The model, with storage.
        reader: The checkpoint.
        strict: Whether a difference in names is an error.

    Returns:
        The names that were not loaded; empty when ``strict``.

    Raises:
        CheckpointError: Names differ and ``strict`` is set, shapes differ, or the checkpoint is damaged.
    """
    entries = list(canonical_entries(model))
    known = {name for names in gather_json([entry.name for entry in entries]) for name in names}
    found = set(reader.names)
    mismatch = Mismatch(tuple(sorted(known - found)), tuple(sorted(found - known)))
    if strict and any(mismatch):
        raise CheckpointError(f"{reader.path} does not fit the model: {_described(mismatch)}")
    for entry in entries:
        if entry.name not in found:
            continue
        tensor = reader.tensor(entry.name)
        if tensor.shape != entry.tensor.shape:
            raise CheckpointError(
                f"{reader.path}: {entry.name} is {tuple(tensor.shape)}, the model expects {tuple(entry.tensor.shape)}"
            )
        entry.tensor.copy_(tensor)
    return mismatch


def _described(mismatch: Mismatch) -> str:
    parts = []
    if mismatch.missing:
        parts.append(f"the checkpoint lacks {_listed(mismatch.missing)}")
    if mismatch.unexpected:
        parts.append(f"the model has no place for {_listed(mismatch.unexpected)}")
    return "; ".join(parts)


def _listed(names: Collection[str], most: int = 8) -> str:
    shown: Iterable[str] = list(names)[:most]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + rest
