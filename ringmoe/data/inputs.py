"""The input contract: what the numbers of a modality are and how they are scaled. It travels with every checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ringmoe.batch import Radiometry
from ringmoe.config import files
from ringmoe.errors import ConfigError, ShardError
from ringmoe.modality import ModalitySpec, Unit
from ringmoe.raster.statistics import ChannelStatistics


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tiles whose numbers mean the same, and the statistics of those of them that train.

    Attributes:
        sensor: Instrument.
        units: What the numbers are.
        dtype: Stored numpy type.
        nodata: Value of entries without data, as text ("nan", "0.0": JSON has no NaN); None where there is none.
        absent: Bands of the modality that the scenes do not have.
        channels: Statistics of each channel, and last of the power where bands are complex; None for an absent one.
        radiometry: How the numbers become a physical quantity; None where the scenes do not say it.
    """

    sensor: str
    units: Unit
    dtype: str
    nodata: str | None
    absent: tuple[str, ...]
    channels: tuple[ChannelStatistics | None, ...] = ()
    radiometry: Radiometry | None = None

    @property
    def identity(self) -> tuple[Any, ...]:
        """What two groups must share to be one."""
        return (self.sensor, self.units, self.dtype, self.nodata, self.absent, self.radiometry)

    def __str__(self) -> str:
        """The group in words, for messages."""
        nodata = "" if self.nodata is None else f", no-data {self.nodata}"
        absent = f", without {', '.join(self.absent)}" if self.absent else ""
        radiometry = "" if self.radiometry is None else f", {self.radiometry}"
        return f"sensor {self.sensor!r} ({self.units}, {self.dtype}{nodata}{absent}{radiometry})"


@dataclass(frozen=True, kw_only=True)
class InputStatistics:
    """What a model was told about the inputs of one modality.

    Attributes:
        spec: The modality: bands, units, target.
        groups: Every group of tiles, in the order of the group ids.
    """

    spec: ModalitySpec
    groups: tuple[Group, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"spec": ..., "statistics": [group, ...]}``."""
        return {"spec": self.spec.to_dict(), "statistics": files.to_dict(self.groups)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "InputStatistics":
        """Rebuilds the contract that ``to_dict`` gave.

        Raises:
            ConfigError: A field is missing, unknown or of the wrong type.
        """
        if values.keys() != {"spec", "statistics"}:
            raise ConfigError(f"inputs of a modality hold {', '.join(values) or 'nothing'}; expected spec, statistics")
        groups = tuple(files.from_dict(Group, group, where="statistics") for group in values["statistics"])
        return cls(spec=ModalitySpec.from_dict(values["spec"]), groups=groups)

    def check_compatible(self, other: "InputStatistics", *, ours: str, theirs: str) -> None:
        """Checks that inputs under the contract ``other`` are what this contract expects.

        Groups that only this side knows do no harm; one that only the other side knows was never trained on.

        Args:
            other: The contract of the other side.
            ours: What this side is, for the message: "checkpoint runs/a/step-00000100".
            theirs: What the other side is: "shards /data/b".

        Raises:
            ShardError: The two disagree; the message names both sides.
        """
        if self.spec.channels != other.spec.channels:
            here, there = (", ".join(side.spec.channels) for side in (self, other))
            raise ShardError(f"modality {self.spec.key!r} is not the same: {ours} has {here}; {theirs} has {there}")
        known = {group.identity: group for group in self.groups}
        for group in other.groups:
            if group.identity not in known:
                raise ShardError(
                    f"modality {self.spec.key!r}: {theirs} holds {group}; {ours} knows only {_listed(self.groups)}"
                )
            expected_C, found_C = known[group.identity].channels, group.channels
            for name, expected, found in zip(self.spec.measured, expected_C, found_C, strict=True):
                if expected != found:
                    raise ShardError(
                        f"modality {self.spec.key!r}, {group}, channel {name}: {ours} was normalised with "
                        f"{_brief(expected)}; {theirs} has {_brief(found)}. Use the shards it was trained on"
                    )


def _listed(groups: Sequence[Group]) -> str:
    return "; ".join(map(str, groups)) or "no sensor at all"


def _brief(channel: ChannelStatistics | None) -> str:
    return "no values" if channel is None else f"mean {channel.mean:.6g}, std {channel.std:.6g}"
