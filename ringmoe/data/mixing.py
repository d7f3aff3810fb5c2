"""How much of a batch each modality and each data set makes up.

Every micro-batch holds a fixed number of images of each modality. It follows from one of: weights, a temperature, or
quotas, which are the numbers themselves. Within a modality the folders of shards are pooled, so that every tile is as
likely as any other, unless they are given weights or a temperature of their own: then each folder keeps its share, has
its own order and begins its own epochs (``ringmoe.data.order.MixedOrder``).

A temperature T gives shares in proportion to size^(1/T): 1 is proportional to the sizes, infinity equal shares
(Conneau et al., 2020, section 3.1, with alpha = 1/T).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ringmoe.errors import ConfigError

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Shares of modalities in a micro-batch, and of folders in a modality.

    Attributes:
        weights: Share of each modality in a micro-batch; empty for equal shares.
        temperature: Shares of the modalities in proportion to their tiles to the power of 1/T, at least 1: 1 for
            shares like the sizes, ``inf`` for equal ones. Instead of weights.
        quotas: Images of each modality in a micro-batch; they add up to it. Instead of weights.
        set_weights: Share of each folder of shards in the images of a modality, in the order of ``shards``; empty
            for all tiles alike.
        set_temperature: The same by a temperature over the folders' tiles. Instead of set weights.
    """

    weights: dict[str, float] = field(default_factory=dict)
    temperature: float | None = None
    quotas: dict[str, int] = field(default_factory=dict)
    set_weights: tuple[float, ...] = ()
    set_temperature: float | None = None

    def __post_init__(self) -> None:
        """Checks that shares are given in one way only.

        Raises:
            ConfigError: They are given in several, or a temperature is out of range.
        """
        for names in (("weights", "temperature", "quotas"), ("set_weights", "set_temperature")):
            given = [f"--data.{name.replace('_', '-')}" for name in names if getattr(self, name) not in ({}, (), None)]
            if len(given) > 1:
                raise ConfigError(f"{' and '.join(given)} each say how images are shared out: give one of them")
        for name in ("temperature", "set_temperature"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ConfigError(
                    f"data.{name} is {value}; it must be at least 1: 1 for shares in proportion to the sizes, inf for "
                    "equal shares"
                )

    def split_images(self, micro_batch: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """Images of each modality in a micro-batch; they add up to it.

        Args:
            micro_batch: Images of all modalities together.
            sizes: Tiles of each modality, in the model's order; only a temperature looks at them.

        Raises:
            ConfigError: The shares do not fit the modalities, or there are fewer images than modalities.
        """
        if self.quotas:
            return _checked_quotas(self.quotas, micro_batch, tuple(sizes))
        weights = self.weights if self.temperature is None else tempered(sizes, self.temperature)
        return images_per_micro_batch(micro_batch, tuple(sizes), weights)

    def weights_without_shards(self) -> dict[str, float]:
        """Weights of the modalities, where no shards are at hand: empty for equal shares.

        Raises:
            ConfigError: The shares follow from the shards.
        """
        if self.temperature is not None:
            raise ConfigError(
                "data.temperature shares images out by the sizes of the shards, which are not looked at here: give "
                "--data.quotas, as the table at the start of a run shows them"
            )
        return {key: float(quota) for key, quota in self.quotas.items()} or self.weights

    def share_sets(self, images: int, sizes: Mapping[int, int], num_sets: int) -> dict[int, int] | None:
        """Of so many images of a modality: how many come from each folder.

        Args:
            images: To be shared out.
            sizes: Position of each folder that holds the modality to its tiles.
            num_sets: Folders of all modalities.

        Returns:
            Images of each folder, at least one; None where the tiles of all folders are alike.

        Raises:
            ConfigError: The weights do not fit the folders.
        """
        if self.set_temperature is not None:
            return apportion(images, tempered(sizes, self.set_temperature))
        if not self.set_weights:
            return None
        if len(self.set_weights) != num_sets:
            raise ConfigError(
                f"--data.set-weights has {len(self.set_weights)} weights, but {num_sets} folders of shards are given: "
                "give one weight for each, in their order"
            )
        for number, weight in enumerate(self.set_weights):
            _check_weight(f"set weight {number + 1}", weight, "leave its folder out of --data.shards")
        return apportion(images, {number: self.set_weights[number] for number in sizes})


def images_per_micro_batch(micro_batch: int, modalities: Sequence[str], weights: Mapping[str, float]) -> dict[str, int]:
    """Splits a micro-batch among the modalities in proportion to their weights (largest remainder), at least one each.

    Args:
        micro_batch: Images of all modalities together.
        modalities: Keys in the model's order.
        weights: Positive weight of each modality; empty means equal weights.

    Returns:
        Images of each modality in the model's order; they add up to ``micro_batch``.

    Raises:
        ConfigError: The weights do not fit the modalities, or there are fewer images than modalities.
    """
    weights = weights or dict.fromkeys(modalities, 1.0)
    _check_keys("mixture weights", weights, modalities)
    for key, weight in weights.items():
        _check_weight(f"mixture weight of {key!r}", weight, "leave it out of the model")
    if micro_batch < len(modalities):
        raise ConfigError(
            f"a micro-batch of {micro_batch} images cannot hold one of each of {len(modalities)} modalities "
            f"({', '.join(modalities)}): use at least {len(modalities)}"
        )
    return apportion(micro_batch, {key: weights[key] for key in modalities})


def apportion(total: int, weights: Mapping[Key, float]) -> dict[Key, int]:
    """Shares a number out in proportion to weights (largest remainder), at least one each; ``total`` must suffice."""
    whole = sum(weights.values())
    owed = {key: total * weight / whole for key, weight in weights.items()}
    # the one that a small weight must still get comes from those that are furthest above their share
    counts = {key: max(1, int(share)) for key, share in owed.items()}
    while sum(counts.values()) < total:
        counts[max(owed, key=lambda key: owed[key] - counts[key])] += 1
    while sum(counts.values()) > total:
        counts[min((key for key in owed if counts[key] > 1), key=lambda key: owed[key] - counts[key])] -= 1
    return counts


def tempered(sizes: Mapping[Key, int], temperature: float) -> dict[Key, float]:
    """Weights in proportion to size^(1/T); the largest is 1."""
    most = max(sizes.values())
    return {key: (size / most) ** (1 / temperature) for key, size in sizes.items()}


def _checked_quotas(quotas: Mapping[str, int], micro_batch: int, modalities: Sequence[str]) -> dict[str, int]:
    """The quotas in the model's order."""
    _check_keys("quotas", quotas, modalities)
    for key, quota in quotas.items():
        if quota < 1:
            raise ConfigError(
                f"quota of {key!r} is {quota}; it must be at least 1. To train without a modality leave it out of the "
                "model"
            )
    if (total := sum(quotas.values())) != micro_batch:
        raise ConfigError(
            f"the quotas add up to {total} images, but a micro-batch has {micro_batch}: set "
            f"--data.micro-batch {total}, or other quotas"
        )
    return {key: quotas[key] for key in modalities}


def _check_keys(what: str, given: Mapping[str, object], modalities: Sequence[str]) -> None:
    if set(given) != set(modalities):
        raise ConfigError(
            f"{what} are for {', '.join(sorted(given))} but the model's modalities are {', '.join(modalities)}: give "
            "each of these one, and nothing else"
        )


def _check_weight(what: str, weight: float, remedy: str) -> None:
    if not 0 < weight < float("inf"):
        raise ConfigError(f"{what} is {weight}: it must be positive and finite. To train without it, {remedy}")
