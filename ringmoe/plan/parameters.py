"""What a rank holds, parameter by parameter, and the flat buffers that the engine puts it in.

DeepSpeed copies the parameters of every group into one buffer, pads it, and gives each rank of the group an equal part
of it to optimise. How it does so decides every byte of weights, gradients and optimiser state.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch

from ringmoe.models import build_model
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.naming import canonical_entries

_MOST_IN_EXPERT_GROUP = 178_956_971  # elements: DeepSpeed splits groups of experts that are larger
_ALIGNMENT = 2  # elements of every rank's part are a multiple of this


@dataclass(frozen=True)
class LocalParameter:
    """A parameter as one rank holds it.

    Attributes:
        module: Path of the module that owns it.
        numel: Elements on this rank.
        tensors: Globally named tensors in it, of equal size: more than one in a stack of experts.
        decays: Whether weight decay acts on it.
        spread: Whether other expert-parallel ranks hold other experts in its place.
    """

    module: str
    numel: int
    tensors: int
    decays: bool
    spread: bool


@lru_cache(maxsize=32)
def local_parameters(
    model: RingMoEConfig, expert_parallel: int, decays: Callable[[str], bool]
) -> tuple[LocalParameter, ...]:
    """The parameters of one rank in the engine's order; every rank holds as much. Nothing is allocated.

    Args:
        model: The model.
        expert_parallel: Ranks that share the experts.
        decays: Whether weight decay acts on the tensor of a global name: it decides the engine's groups.
    """
    with torch.device("meta"):
        module = build_model(model, ExpertParallel(expert_parallel))
    entries = list(canonical_entries(module))
    tensors = Counter(entry.path for entry in entries)
    found = {
        entry.path: LocalParameter(
            module=entry.path.rpartition(".")[0],
            numel=entry.parameter.numel(),
            tensors=tensors[entry.path],
            decays=decays(entry.name),
            spread=entry.index is not None and expert_parallel > 1,
        )
        for entry in entries
    }
    return tuple(found.values())


@dataclass(frozen=True)
class FlatBuffer:
    """One group of parameters, flattened and shared out.

    Attributes:
        sizes: Elements of its parameters in order.
        ranks: Ranks that each optimise a part of it.
        spread: Whether it holds experts that are spread over ranks.
    """

    sizes: tuple[int, ...]
    ranks: int
    spread: bool

    @property
    def numel(self) -> int:
        """Elements of its parameters."""
        return self._ends[-1]

    @property
    def padded(self) -> int:
        """Elements with the padding that makes all parts equal."""
        multiple = _ALIGNMENT * self.ranks
        return -(-self.numel // multiple) * multiple

    @property
    def part(self) -> int:
        """Elements that one rank optimises."""
        return self.padded // self.ranks

    def reduced(self, place: int) -> int:
        """Elements of the averaged gradients that the rank at a place holds for its step.

        They are whole parameters, of which some only begin or end in its part, and zeros behind the last.
        """
        start, end = place * self.part, (place + 1) * self.part
        if start >= self.numel:
            return self.part
        first = bisect_right(self._ends, start)
        last = bisect_right(self._ends, min(end, self.numel) - 1)
        begins = self._ends[first] - self.sizes[first]
        return self._ends[last] - begins + max(0, end - self.numel)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(self.sizes))


@lru_cache(maxsize=256)
def flat_buffers(parameters: tuple[LocalParameter, ...], devices: int, expert_parallel: int) -> tuple[FlatBuffer, ...]:
    """The engine's buffers: decaying and other parameters that all ranks share, then experts in groups of limited size.

    Args:
        parameters: Of one rank, in order.
        devices: Ranks of the job.
        expert_parallel: Ranks that share the experts.
    """
    shared, experts = [], []
    for wanted in (True, False):
        of_kind = [parameter for parameter in parameters if parameter.decays == wanted]
        shared.append((tuple(p.numel for p in of_kind if not p.spread), devices, False))
        for sizes in _limited(p.numel for p in of_kind if p.spread):
            experts.append((sizes, devices // expert_parallel, True))
    return tuple(FlatBuffer(*values) for values in shared + experts if values[0])


def _limited(sizes: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Sizes in groups, each as large as the engine allows; a parameter that is larger still has one of its own."""
    group: list[int] = []
    for size in sizes:
        if group and sum(group) + size > _MOST_IN_EXPERT_GROUP:
            yield tuple(group)
            group = []
        group.append(size)
    if group:
        yield tuple(group)
