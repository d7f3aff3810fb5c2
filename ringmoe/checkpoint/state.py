"""What a training checkpoint holds beside tensors, and what it asks of the engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ringmoe.checkpoint.manifest import FORMAT
from ringmoe.config import from_dict, to_dict
from ringmoe.distributed.topology import Topology
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.naming import Entry

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a run stands. There is no random state: every draw is a function of seed, step and sample.

    Attributes:
        step: Steps done.
        updates: Those of them that changed the weights; None for all. Others were left out for their numbers.
        seed: The run's seed.
        data_fingerprint: Tells the shards apart from others; a resumed run must see the same samples.
        data: Position in the data.
        schedule: State of the learning rate's schedule.
        callbacks: State of each callback by its name.
    """

    step: int
    seed: int
    data_fingerprint: str
    data: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    updates: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Contents of ``trainer.json``."""
        return {"format": FORMAT, **to_dict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> "TrainerState":
        """Rebuilds the state from ``trainer.json``.

        Raises:
            CheckpointError: It holds something else.
        """
        try:
            return from_dict(cls, {name: value for name, value in values.items() if name != "format"}, where=where)
        except ConfigError as error:
            raise CheckpointError(f"{error}: it was written by another version of ringmoe") from error


class Stateful(Protocol):
    """What saving and loading need of an engine (``ringmoe.distributed.engine.Engine`` is one)."""

    model: nn.Module
    topology: Topology

    def state_of(self, entries: Iterable[Entry]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Each tensor's ``weight`` and moments in fp32, on the rank that owns it alone; all ranks exhaust it.

        They are copies on the CPU: what training does afterwards does not change them.
        """
        ...

    def load_state(self, getter: Callable[[str], Mapping[str, Tensor]], step: int) -> None:
        """Sets weights and moments to what ``getter`` gives for each global name."""
        ...
