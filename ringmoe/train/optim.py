"""What AdamW is told: who decays, and which learning rate each step takes.

The paper gives AdamW, weight decay 0.05 and learning rate 2e-4 (App. B.3). Betas, schedule, warm-up and clipping are
not given; the defaults are AdamW's own, a linear warm-up and a cosine, and clipping at norm 1.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ringmoe.errors import ConfigError
from ringmoe.naming import Entry

# the last part of a global name: biases of layers and experts, scales, learned tokens, the width of the gates' noise
_NO_DECAY_LEAVES = frozenset(
    {"bias", "q_bias", "v_bias", "b1", "b2", "logit_scale", "noise", "mask_token", "positions"}
)


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW.

    Attributes:
        lr: Highest learning rate (App. B.3).
        weight_decay: Decoupled weight decay of matrices (App. B.3); see ``decays``.
        betas: Decay of the running mean and of the running square of the gradient.
        eps: Added to the root of the running square.
        clip: Global gradient norm above which gradients are scaled down; 0 switches clipping off, with which the lean
            engine need not hold all gradients until their norm is known.
    """

    lr: float = 2e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value outside its range.
        """
        if self.lr <= 0 or self.weight_decay < 0 or self.eps <= 0 or self.clip < 0:
            raise ConfigError(
                f"optimiser: lr {self.lr} and eps {self.eps} must be above 0, weight_decay {self.weight_decay} and "
                f"clip {self.clip} at least 0"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimiser: betas {self.betas} must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine down to a floor.

    Attributes:
        steps: Optimiser steps of the whole run.
        warmup: Steps over which the rate rises linearly; the first step already takes a share of it.
        floor: Last learning rate as a share of the highest.
    """

    steps: int = 100_000
    warmup: int = 2_000
    floor: float = 0.01

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value outside its range.
        """
        if self.steps < 1 or not 0 <= self.warmup < self.steps:
            raise ConfigError(
                f"schedule: {self.steps} steps with {self.warmup} of warm-up; there must be at least one step, and "
                "the warm-up must be shorter than the run (--schedule.warmup)"
            )
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"schedule: floor {self.floor} is a share of the highest rate and lies in [0, 1]")

    def factor(self, step: int) -> float:
        """Share of the highest learning rate that a step takes.

        Args:
            step: Steps done before it, from 0.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min((step - self.warmup) / max(self.steps - 1 - self.warmup, 1), 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def decays(name: str) -> bool:
    """Whether weight decay acts on the tensor of this global name: on matrices of layers, experts and gates only."""
    parts = name.split(".")
    is_norm = any(part == "norm" or part.startswith("norm") or part.endswith("_norm") for part in parts[:-1])
    return parts[-1] not in _NO_DECAY_LEAVES and not is_norm and "position_bias" not in parts


def decay_of_parameters(entries: Iterable[Entry]) -> dict[str, bool]:
    """For each local parameter, by its own path, whether weight decay acts on it.

    A stacked parameter holds many experts of one kind, which all decay or all do not.
    """
    return {entry.path: decays(entry.name) for entry in entries}
