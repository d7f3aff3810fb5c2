"""How many images of each modality a micro-batch holds: weights to fixed counts."""

from collections.abc import Mapping, Sequence

from ringmoe.errors import ConfigError


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
    if set(weights) != set(modalities):
        raise ConfigError(
            f"mixture weights are for {', '.join(sorted(weights))} but the model's modalities are "
            f"{', '.join(modalities)}: give each of these a weight, and nothing else"
        )
    bad = [key for key, weight in weights.items() if not 0 < weight < float("inf")]
    if bad:
        raise ConfigError(
            f"mixture weight of {bad[0]!r} is {weights[bad[0]]}: it must be positive. To train without a modality "
            "leave it out of the model"
        )
    if micro_batch < len(modalities):
        raise ConfigError(
            f"a micro-batch of {micro_batch} images cannot hold one of each of {len(modalities)} modalities "
            f"({', '.join(modalities)}): use at least {len(modalities)}"
        )
    total = sum(weights.values())
    owed = {key: micro_batch * weights[key] / total for key in modalities}
    # the one image that a small weight must still get comes from those that are furthest above their share
    counts = {key: max(1, int(owed[key])) for key in modalities}
    while sum(counts.values()) < micro_batch:
        counts[max(modalities, key=lambda key: owed[key] - counts[key])] += 1
    while sum(counts.values()) > micro_batch:
        counts[min((key for key in modalities if counts[key] > 1), key=lambda key: owed[key] - counts[key])] -= 1
    return counts
