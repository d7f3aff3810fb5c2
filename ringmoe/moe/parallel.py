"""Which rank holds which expert.

Expert k of every family lives on rank k mod n of the n expert-parallel ranks, so that each rank holds the same number
of experts of every modality. Every family's size is a multiple of n; a position in the layer's expert list (all
families one after the other) therefore has the same remainder as the id within its family, and placement is arithmetic
on positions: position p lives on rank p mod n, as its local expert p // n.
"""

from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor

from ringmoe.clock import Clock
from ringmoe.errors import ConfigError
from ringmoe.moe.config import RMoEConfig

# T tokens, K experts that a token selects


@dataclass
class ExpertParallel:
    """The expert-parallel ranks and this rank's place among them; one instance is shared by all layers of a model.

    Attributes:
        size: Number of ranks that share the experts; with 1 every rank holds all of them.
        rank: This rank's place, from 0.
        group: The process group of these ranks; whoever starts the engine sets it before the first forward.
        clock: Told, as ``exchange``, what this rank waits for the others.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks the rank against the size.

        Raises:
            ConfigError: The size is not positive, or there is no such rank.
        """
        if self.size < 1 or not 0 <= self.rank < self.size:
            raise ConfigError(
                f"expert parallel: rank {self.rank} of {self.size}; expected a size of at least 1 and a rank below it"
            )

    def check(self, config: RMoEConfig, where: str) -> None:
        """Checks that every family of a layer can be spread evenly, expert k to rank k mod ``size``.

        Args:
            config: The layer.
            where: What the layer is called in messages.

        Raises:
            ConfigError: A family cannot be spread over this number of ranks.
        """
        families = {"specialised": tuple(range(config.num_specialised)), "collaborative": config.collaborative_ids}
        for family, ids in families.items():
            if len(ids) % self.size or any(k % self.size != place % self.size for place, k in enumerate(ids)):
                raise ConfigError(
                    f"{where}: {family} experts {ids} cannot be spread evenly over {self.size} expert-parallel ranks "
                    f"(expert k lives on rank k mod {self.size}); use an expert-parallel size that divides the number "
                    "of experts of every family, and 1 for a pruned model"
                )

    def local(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The part of the layer's expert list that this rank holds, in local order."""
        return names[self.rank :: self.size]

    def by_rank(self, ids_TK: Tensor, num_experts: int) -> Tensor:
        """Positions in the expert list as positions in the same list reordered by rank, then local expert; (T, K)."""
        return ids_TK % self.size * (num_experts // self.size) + ids_TK // self.size
