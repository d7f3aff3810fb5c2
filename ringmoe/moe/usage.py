"""Load statistics: how often each modality's tokens select each expert, layer by layer (App. B.4, Eq. 15).

Training keeps them, calibration measures them, pruning decides by them; they travel as a small JSON file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ringmoe.config import from_dict, to_dict
from ringmoe.errors import ConfigError

# L layers, M modalities, E experts that one modality may choose from: its specialised ones, then the collaborative ones


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Selections counted over any number of tokens.

    Attributes:
        modalities: Keys of the M modalities.
        num_specialised: N_S, the specialised experts that stand before the collaborative ones in a row of counts.
        counts: ``counts[l][m][e]``, tokens of modality m that selected expert e in layer l; collaborative experts
            stand by original id, those that were pruned have 0.
        tokens: ``tokens[l][m]``, tokens of modality m that layer l saw.
        source: What was counted, in words.
    """

    modalities: tuple[str, ...]
    num_specialised: int
    counts: tuple[tuple[tuple[int, ...], ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    source: str

    def __post_init__(self) -> None:
        """Checks that the numbers belong together.

        Raises:
            ConfigError: Layers, modalities or experts disagree in number, or a count is negative.
        """
        num_modalities = len(self.modalities)
        if not self.counts or len(self.counts) != len(self.tokens):
            raise ConfigError(f"usage: {len(self.counts)} layers of counts but {len(self.tokens)} layers of tokens")
        for layer, (rows, tokens) in enumerate(zip(self.counts, self.tokens, strict=True)):
            if len(rows) != num_modalities or len(tokens) != num_modalities:
                raise ConfigError(f"usage of layer {layer}: expected one row for each of {', '.join(self.modalities)}")
            if any(len(row) != self.num_routed or min(row, default=0) < 0 for row in rows):
                raise ConfigError(f"usage of layer {layer}: expected {self.num_routed} counts of 0 or more in each row")

    @property
    def num_routed(self) -> int:
        """Experts that one modality may choose from, E."""
        return len(self.counts[0][0])

    def collaborative(self, layer: int, key: str) -> tuple[float, ...]:
        """f(E^C_k | x_m) of Eq. 15 by k: the share of modality m's tokens that selects collaborative expert k.

        Raises:
            ConfigError: No such modality, or none of its tokens was counted.
        """
        return self.shares(layer, key)[self.num_specialised :]

    def shares(self, layer: int, key: str) -> tuple[float, ...]:
        """The share of a modality's tokens that selects each expert: its specialised ones, then the collaborative ones.

        Raises:
            ConfigError: No such modality, or none of its tokens was counted.
        """
        if key not in self.modalities:
            raise ConfigError(f"usage was counted for {', '.join(self.modalities)}, not for {key!r}")
        m = self.modalities.index(key)
        num_tokens = self.tokens[layer][m]
        if num_tokens == 0:
            raise ConfigError(f"usage: layer {layer} saw no token of {key!r}; calibrate on tiles of this modality")
        return tuple(count / num_tokens for count in self.counts[layer][m])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = to_dict(self)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str = "usage") -> "Usage":
        """Rebuilds the statistics from plain values.

        Raises:
            ConfigError: Not such statistics.
        """
        return from_dict(cls, values, where=where)

    @classmethod
    def from_counts(
        cls, counts_LME: Tensor, tokens_LM: Tensor, *, modalities: tuple[str, ...], num_specialised: int, source: str
    ) -> "Usage":
        """Statistics from summed ``Output.routing_counts_LME`` and ``Output.tokens_LM``; see the class for the rest."""
        return cls(
            modalities=modalities,
            num_specialised=num_specialised,
            counts=tuple(tuple(map(tuple, layer)) for layer in counts_LME.round().long().tolist()),
            tokens=tuple(map(tuple, tokens_LM.round().long().tolist())),
            source=source,
        )

    def save(self, path: Path) -> None:
        """Writes a JSON file."""
        path.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Usage":
        """Reads a JSON file.

        Raises:
            ConfigError: The file cannot be read or holds something else.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as usage statistics: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, not usage statistics")
        return cls.from_dict(values, where=str(path))
