"""Which rank holds which experts and which rank saves which tensor: arithmetic on ranks, without a process group.

Ranks are grouped as DeepSpeed groups them. With a world of 8 and expert-parallel size 2::

    expert-parallel groups   (0 1) (2 3) (4 5) (6 7)   exchange tokens; together they hold every expert once
    expert-data groups       (0 2 4 6) (1 3 5 7)       hold the same experts and average their gradients
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ringmoe.errors import ConfigError

SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Topology:
    """How many ranks there are, and over how many of them the experts are spread.

    Attributes:
        world: Ranks of the job.
        expert_parallel: Ranks that together hold every expert once: 1, 2 or 4, and a divisor of the world.
    """

    world: int = 1
    expert_parallel: int = 1

    def __post_init__(self) -> None:
        """Checks that the ranks can be grouped.

        Raises:
            ConfigError: The expert-parallel size is not one of 1, 2 and 4, or does not divide the world.
        """
        if self.world < 1:
            raise ConfigError(f"a world of {self.world} ranks: there must be at least one")
        if self.expert_parallel not in self.possible_sizes:
            raise ConfigError(
                f"expert-parallel size {self.expert_parallel} does not fit {self.world} ranks: it must be one of 1, 2 "
                f"and 4 and divide the number of ranks; use one of {_listed(self.possible_sizes)}, or start another "
                "number of ranks"
            )

    @property
    def possible_sizes(self) -> tuple[int, ...]:
        """Expert-parallel sizes that this world allows."""
        return tuple(size for size in SIZES if self.world % size == 0)

    def check_experts(self, families: Mapping[str, int]) -> None:
        """Checks that every rank of an expert-parallel group gets the same number of experts of each family.

        Args:
            families: Experts of each family by its name; a family of size 0 is left out.

        Raises:
            ConfigError: The expert-parallel size does not divide a family.
        """
        for family, num_experts in families.items():
            if num_experts % self.expert_parallel:
                fitting = [size for size in self.possible_sizes if num_experts % size == 0]
                raise ConfigError(
                    f"expert-parallel size {self.expert_parallel} does not divide the {num_experts} experts of the "
                    f"{family} family: use one of {_listed(fitting)}, or another number of experts"
                )

    def ep_rank(self, rank: int) -> int:
        """Place of a rank in its expert-parallel group: it holds the experts k with k mod size = place."""
        return rank % self.expert_parallel

    def expert_data_ranks(self, rank: int) -> tuple[int, ...]:
        """Ranks that hold the same experts as ``rank``, itself among them."""
        return tuple(range(self.ep_rank(rank), self.world, self.expert_parallel))

    def owners(self, rank: int, *, shared: Mapping[str, int], experts: Mapping[str, int]) -> dict[str, int]:
        """Who saves each of the tensors that ``rank`` holds, so that all ranks write about the same amount.

        Every rank that holds a tensor comes to the same answer without asking the others, whatever the order in which
        it lists the names.

        Args:
            rank: The rank that asks.
            shared: Global names of the tensors that all ranks hold, with their sizes.
            experts: Global names of the expert tensors that the ranks of its expert-data group hold, with their sizes.

        Returns:
            The owning rank of each name.
        """
        loads = dict.fromkeys(range(self.world), 0)
        return _spread(shared, range(self.world), loads) | _spread(experts, self.expert_data_ranks(rank), loads)


def _spread(sizes: Mapping[str, int], ranks: Sequence[int], loads: dict[int, int]) -> dict[str, int]:
    """Gives each name, largest first, to the rank with the least so far, and adds it to that rank's load."""
    queue = [(loads[rank], rank) for rank in ranks]
    heapq.heapify(queue)
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, owner = queue[0]
        owners[name] = owner
        loads[owner] = load + sizes[name]
        heapq.heapreplace(queue, (loads[owner], owner))
    return owners


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
