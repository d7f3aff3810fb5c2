"""What a checkpoint says of itself, so that whoever opens it can build the model and prepare its inputs."""

import hashlib
from typing import Any

from ringmoe.checkpoint.manifest import FORMAT
from ringmoe.config import to_dict
from ringmoe.data.inputs import InputStatistics
from ringmoe.data.loader import Loader
from ringmoe.errors import ShardError
from ringmoe.models import ModelConfig, family_of


def contract_of(model: ModelConfig, loader: Loader) -> dict[str, Any]:
    """Contents of ``config.json``: the model, and for each modality what its inputs are and how they are scaled."""
    return {
        "format": FORMAT,
        "family": family_of(model).name,
        "model": to_dict(model),
        "inputs": {key: statistics.to_dict() for key, statistics in loader.statistics.items()},
    }


def check_inputs(contract: dict[str, Any], loader: Loader, *, ours: str, theirs: str) -> None:
    """Checks that a loader gives what a checkpoint was trained on.

    Args:
        contract: The checkpoint's ``config.json``.
        loader: Gives the inputs.
        ours: What the checkpoint is called in messages.
        theirs: What the shards are called in messages.

    Raises:
        ShardError: Bands, units, types or statistics differ; the message names both sides.
    """
    known = contract["inputs"]
    for key, statistics in loader.statistics.items():
        if key not in known:
            raise ShardError(
                f"{theirs}: {ours} says nothing of the inputs of modality {key!r}, only of {', '.join(known) or 'none'}"
            )
        expected = InputStatistics.from_dict(known[key])
        expected.check_compatible(statistics, ours=ours, theirs=theirs)


def fingerprint_of(loader: Loader) -> str:
    """One checksum for all the shards that a loader reads."""
    return hashlib.sha256("".join(loader.state(0)["shards"]).encode()).hexdigest()
