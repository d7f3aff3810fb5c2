"""What an engine is to a run, whichever it is, and what all of them share.

Nothing heavy is imported here, so that a run takes in the engine that it asked for and no other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from torch import Tensor, nn

from ringmoe.distributed.topology import Topology
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.naming import Entry

MOMENTS = ("exp_avg", "exp_avg_sq")

ParameterGroups = Sequence[Mapping[str, Any]]


class TrainingEngine(Protocol):
    """A model, its optimiser and, where there are several ranks, the exchange of gradients between them.

    One optimiser step is as many rounds of ``forward``, ``backward`` and ``step`` as micro-batches are accumulated; the
    last ``step`` of them ends it.

    Attributes:
        model: The model as it was given.
        topology: How the ranks are grouped.
    """

    model: nn.Module
    topology: Topology

    def forward(self, *inputs: Any) -> Any:
        """The model's output for a micro-batch."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a micro-batch's loss, a scalar, to the step's."""
        ...

    def step(self) -> None:
        """Ends a micro-batch, and with the last one of a step the step."""
        ...

    @property
    def is_boundary(self) -> bool:
        """Whether the coming ``step`` will end the optimiser step."""
        ...

    @property
    def skipped(self) -> bool:
        """Whether the last optimiser step was left out since a gradient was not finite."""
        ...

    @property
    def can_skip(self) -> bool:
        """Whether a step with a gradient that is not finite is left out: weights and moments stay as they are."""
        ...

    @property
    def updates(self) -> int:
        """Optimiser steps that weights and moments have seen, those left out not counted; waits for the device."""
        ...

    @property
    def grad_norm(self) -> Tensor:
        """Global norm of the last step's gradient, before clipping; not finite where a gradient was not."""
        ...

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the coming steps; called before the first micro-batch of a step."""
        ...

    def state_of(self, entries: Iterable[Entry]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The fp32 ``weight``, ``exp_avg`` and ``exp_avg_sq`` of each name, on the rank that owns it alone."""
        ...

    def load_state(self, getter: Callable[[str], Mapping[str, Tensor]], step: int) -> None:
        """Sets weights and moments to what ``getter`` gives for each global name."""
        ...

    def close(self) -> None:
        """Lets go of the model: its parameters keep their values and lose the engine's hooks."""
        ...


def check_groups(model: nn.Module, param_groups: ParameterGroups) -> None:
    """Checks that one group trains every parameter: a missing one would have no state to save.

    Raises:
        ConfigError: A parameter of the model is missing, frozen or there twice, or one is not the model's.
    """
    times: dict[nn.Parameter, int] = {}
    for group in param_groups:
        for parameter in group["params"]:
            times[parameter] = times.get(parameter, 0) + 1
    for path, parameter in model.named_parameters():
        if times.pop(parameter, 0) != 1 or not parameter.requires_grad:
            raise ConfigError(f"parameter {path} must require a gradient and be in one parameter group")
    if times:
        raise ConfigError(f"the parameter groups hold {len(times)} parameters that are not the model's")


def by_parameter(entries: Iterable[Entry]) -> Iterator[tuple[nn.Parameter, list[Entry]]]:
    """Entries grouped by the local parameter that holds them."""
    for _, slices in groupby(entries, key=lambda entry: entry.path):
        listed = list(slices)
        yield listed[0].parameter, listed


def checked(state: Mapping[str, Tensor], entry: Entry) -> Mapping[str, Tensor]:
    """What a checkpoint gives for an entry, after checking that it is all there and has the entry's shape.

    Raises:
        CheckpointError: A tensor has another shape than the model's, or a moment is missing.
    """
    for kind in ("weight", *MOMENTS):
        if kind not in state:
            raise CheckpointError(
                f"{entry.name}: no {kind} in the checkpoint; a released model has none, so that a run can start from "
                "it but not continue it"
            )
        if state[kind].shape != entry.tensor.shape:
            raise CheckpointError(
                f"{entry.name}: {kind} has shape {tuple(state[kind].shape)} in the checkpoint, "
                f"{tuple(entry.tensor.shape)} in the model; is it a checkpoint of another model?"
            )
    return state
