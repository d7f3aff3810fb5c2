"""What goes beyond the paper, as options: the paper adds up weights and hopes; these measure and repair."""

import math
from dataclasses import dataclass
from typing import Literal

from ringmoe.errors import ConfigError

Alignment = Literal["weights", "activations"]
Choice = Literal["frequency", "loss"]

_DENSE = ("ks", "ka", "kc")
DEFAULT_RIDGE = 1e-3
DEFAULT_TILES = 256
DEFAULT_MASKS = 1


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """Which of them are used; by default none, which is the paper.

    Attributes:
        align: Bring the hidden units of all experts into the shared one's order before merging (see ``align``).
        weigh_by_usage: Weigh each expert by how often tokens select it (see ``weighting``).
        whiten: Truncate for the least error of outputs on calibration tokens (see ``whiten``).
        refit: Solve for W_2 and b_2 on calibration tokens (see ``refit``).
        ridge: Weight of the squares of W_2 in the refit, as a share of the hidden units' mean variance; None takes
            ``DEFAULT_RIDGE``.
        sequential: Calibrate each layer on the tokens that the layers before it, already merged, hand it.
        heal: Steps of distillation from the sparse model at the end (see ``heal``).
        choose_by: What decides which collaborative experts stay: how often they are used (Eq. 8), or how much the
            masked error grows without them (see ``ep_loss``).
        tiles: Calibration tiles of each modality; healing learns from all training tiles.
        masks: How often each of them is shown under a mask, besides once whole.
    """

    align: Alignment | None = None
    weigh_by_usage: bool = False
    whiten: bool = False
    refit: bool = False
    ridge: float | None = None
    sequential: bool = False
    heal: int = 0
    choose_by: Choice = "frequency"
    tiles: int = DEFAULT_TILES
    masks: int = DEFAULT_MASKS

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise ConfigError(f"--ridge {self.ridge:g}: expected a weight above 0")
        for name, least in (("heal", 0), ("tiles", 1), ("masks", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"calibration: {name} is {getattr(self, name)}; expected at least {least}")

    @property
    def is_plain(self) -> bool:
        """Whether the plan is carried out as in the paper; what chooses experts is done when it is made."""
        return not (self.by_layer or self.heal)

    @property
    def walks(self) -> bool:
        """Whether merging follows calibration tiles from layer to layer."""
        return self.align == "activations" or self.whiten or self.refit

    @property
    def by_layer(self) -> bool:
        """Whether the experts of a layer are merged together, and not tensor by tensor."""
        return self.walks or self.align is not None or self.weigh_by_usage

    @property
    def needs_tiles(self) -> bool:
        """Whether calibration tiles are needed."""
        return self.walks or self.heal > 0 or self.choose_by == "loss"

    def check(self, mode: str) -> None:
        """Refuses what would do nothing.

        Args:
            mode: Of the compression.

        Raises:
            ConfigError: An option has no effect in this mode or without another one.
        """
        reasons = {
            "--align": (self.align is not None and mode not in _DENSE, "merges nothing"),
            "--weigh-by-usage": (self.weigh_by_usage and mode not in _DENSE, "merges nothing"),
            "--refit": (self.refit and mode not in _DENSE, "has no merged W_2"),
            "--whiten": (self.whiten and mode != "kc", "truncates nothing"),
            "--heal": (self.heal > 0 and mode == "extract", "changes nothing that could be healed"),
            "--choose-by loss": (self.choose_by == "loss" and mode != "ep", "chooses no experts"),
        }
        for option, (idle, why) in reasons.items():
            if idle:
                raise ConfigError(f"{option} does nothing here: mode {mode} {why}; leave it out")
        if self.sequential and not self.walks:
            raise ConfigError(
                "--sequential does nothing by itself: it says on which tokens --refit, --whiten or --align activations "
                "are calibrated; add one of them"
            )
        if self.ridge is not None and not self.refit:
            raise ConfigError("--ridge does nothing without --refit")

    def __str__(self) -> str:
        """What is used, in words; empty for the paper alone."""
        parts = [
            f"hidden units aligned by {self.align}" if self.align else "",
            "experts weighed by usage" if self.weigh_by_usage else "",
            "truncation whitened by tokens" if self.whiten else "",
            f"W_2 and b_2 refitted, ridge {self.ridge or DEFAULT_RIDGE:g}" if self.refit else "",
            "layer after layer on the tokens of those already merged" if self.sequential else "",
            "experts chosen by loss" if self.choose_by == "loss" else "",
            f"{self.heal:,} steps of distillation" if self.heal else "",
        ]
        return ", ".join(filter(None, parts))
