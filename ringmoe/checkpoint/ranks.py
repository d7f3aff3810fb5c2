"""Steps that all ranks take together: what fails on one rank is an error on every rank, and none waits in vain."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from ringmoe.distributed.collectives import gather_json
from ringmoe.errors import CheckpointError


def rank() -> int:
    """This rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def together(action: Callable[[], Any], group: Any = None) -> list[Any]:
    """Runs ``action`` on every rank and waits for all of them.

    Args:
        action: What is done.
        group: The process group of all ranks over which they wait; None for the one of the job.

    Returns:
        What each rank's action returned (anything that JSON can hold), in the order of the ranks, on every rank.

    Raises:
        CheckpointError: An action raised one; every rank raises, with the messages of all that failed.
    """
    value, trouble = None, None
    try:
        value = action()
    except CheckpointError as error:
        trouble = str(error)
    answers = gather_json([value, trouble], group)
    troubles = dict.fromkeys(answer[1] for answer in answers if answer[1] is not None)
    if troubles:
        raise CheckpointError("; ".join(troubles))
    return [answer[0] for answer in answers]


def on_first(action: Callable[[], Any], group: Any = None) -> Any:
    """Runs ``action`` on rank 0 alone while the others wait; all get what it returned.

    Raises:
        CheckpointError: The action raised one; every rank raises it.
    """
    return together(lambda: action() if rank() == 0 else None, group)[0]
