"""What one RMoE layer is made of (Section 3.2.1), checked once and then frozen."""

from dataclasses import dataclass
from typing import Literal

from ringmoe.errors import ConfigError

#: How a parameter is first filled; modules say so of their own parameters in ``init_kinds``.
Kind = Literal["weight", "zeros"]

#: What the backward pass computes again instead of finding it kept: nothing, the hidden values of the experts, or all
#: that is inside the blocks. Each keeps less and computes more than the one before.
Recompute = Literal["nothing", "experts", "blocks"]


@dataclass(frozen=True, kw_only=True)
class RMoEConfig:
    """The experts of one RMoE layer and how tokens choose among them.

    Attributes:
        dim: Width of a token, d.
        hidden: Hidden width of every expert.
        modalities: Keys of the modalities, in the order of the tokens.
        num_specialised: Specialised experts of each modality, N_S (Eq. 1); 0 leaves the family out.
        collaborative_ids: Original ids of the collaborative experts that are there, ascending (Eq. 2); ``()`` leaves
            the family out. Pruning removes ids and never renumbers them.
        shared: Whether there is a shared expert (Eq. 3). Alone it makes the layer a plain FFN.
        top_k: Experts that a token selects in each family, K (Eq. 13); clamped to the size of the family.
        gate_noise: Whether the gates are noisy in training (Eq. 14).
    """

    dim: int
    hidden: int
    modalities: tuple[str, ...]
    num_specialised: int
    collaborative_ids: tuple[int, ...]
    shared: bool = True
    top_k: int = 1
    gate_noise: bool = True

    def __post_init__(self) -> None:
        """Checks that such a layer can be built.

        Raises:
            ConfigError: A number is out of range, names or ids repeat, or no expert is left.
        """
        for name, least in (("dim", 1), ("hidden", 1), ("num_specialised", 0), ("top_k", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"RMoE layer: {name} is {getattr(self, name)}; expected at least {least}")
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ConfigError(f"RMoE layer: modalities are {self.modalities}; expected one or more different keys")
        ids = self.collaborative_ids
        if ids != tuple(sorted(set(ids))) or any(k < 0 for k in ids):
            raise ConfigError(f"RMoE layer: collaborative_ids are {ids}; expected ascending ids, each once, from 0")
        if not (self.num_specialised or ids or self.shared):
            raise ConfigError(
                "RMoE layer: no experts at all; keep the shared expert or give one family at least one expert"
            )

    @property
    def num_collaborative(self) -> int:
        """Collaborative experts that are there, N_C (Eq. 2)."""
        return len(self.collaborative_ids)

    @property
    def num_routed(self) -> int:
        """Experts that tokens are routed to: the specialised ones of all modalities and the collaborative ones."""
        return len(self.modalities) * self.num_specialised + self.num_collaborative

    @property
    def expert_names(self) -> tuple[str, ...]:
        """Names of the routed experts: the layer's expert list, in which routing ids are positions.

        Specialised experts come first, modality by modality, then the collaborative ones:
        ``("specialised.opt.0", ..., "collaborative.3")``.
        """
        specialised = tuple(f"specialised.{m}.{k}" for m in self.modalities for k in range(self.num_specialised))
        return specialised + tuple(f"collaborative.{k}" for k in self.collaborative_ids)
