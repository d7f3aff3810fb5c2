"""Expert pruning: the collaborative experts that a modality hardly uses go (Eq. 8, App. B.4.1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ringmoe.errors import ConfigError

RuleKind = Literal["top", "percentile", "threshold"]


@dataclass(frozen=True)
class PruningRule:
    """Which collaborative experts stay, given how often one modality's tokens select each of them.

    Attributes:
        kind: ``top`` keeps a share of them, the most used first (Tab. A1: 0.25, 0.5, 0.75); ``percentile`` keeps those
            at or above a percentile of the frequencies (Eq. 16: 75); ``threshold`` those above a fixed frequency
            (Eq. 8; Tab. A1: 0.1).
        value: The share (0 to 1), the percentile (0 to 100) or the frequency (0 to 1).
    """

    kind: RuleKind = "top"
    value: float = 0.25

    def __post_init__(self) -> None:
        """Checks the value.

        Raises:
            ConfigError: It is out of range.
        """
        low, high = (0, 100) if self.kind == "percentile" else (0, 1)
        if not low <= self.value <= high or (self.kind == "top" and self.value == 0):
            raise ConfigError(f"expert pruning: {self.kind} {self.value:g}; expected a value from {low} to {high}")

    def __str__(self) -> str:
        """The rule in words."""
        if self.kind == "top":
            return f"the top {self.value:.0%} most used of each modality"
        if self.kind == "percentile":
            return f"those at or above percentile {self.value:g} of the frequencies of each modality"
        return f"those used by more than {self.value:.0%} of a modality's tokens"

    def num_kept(self, num_experts: int) -> int:
        """How many stay by the rule ``top``; at least one, fractions rounded up."""
        return max(1, math.ceil(self.value * num_experts - 1e-9))


def survivors(frequencies: Sequence[float], rule: PruningRule) -> tuple[int, ...]:
    """Places of the experts that one modality keeps in one layer (Eqs. 8 and 16).

    Args:
        frequencies: f(E^C_k | x_m) of each collaborative expert that is there (Eq. 15).
        rule: What stays. The most used expert always does; of equally used ones the first.
    """
    ranked = sorted(range(len(frequencies)), key=lambda place: (-frequencies[place], place))
    if rule.kind == "top":
        return tuple(sorted(ranked[: rule.num_kept(len(ranked))]))
    if rule.kind == "percentile":
        least = float(np.percentile(frequencies, rule.value))
        kept = [place for place in ranked if frequencies[place] >= least]
    else:
        kept = [place for place in ranked if frequencies[place] > rule.value]
    return tuple(sorted(kept or ranked[:1]))


def union(frequencies: Mapping[str, Sequence[float]], ids: Sequence[int], rule: PruningRule) -> tuple[int, ...]:
    """Ids of the experts of one layer that at least one modality keeps (App. B.4.1, below Eq. 16).

    Args:
        frequencies: For each modality, the frequency of each expert in the order of ``ids``.
        ids: Original ids of the collaborative experts that are there.
        rule: What a modality keeps.
    """
    kept = {ids[place] for of_modality in frequencies.values() for place in survivors(of_modality, rule)}
    return tuple(sorted(kept))
