"""Gate-frequency weighting: experts that tokens select often count more when all become one FFN.

The sparse layer adds up what its gates let through (Eq. 3); the paper's sums take every expert in full. Here each
weighs as often as tokens of the chosen modalities select it. The shared one is always selected.
"""

from collections.abc import Sequence

from ringmoe.moe.usage import Usage


def frequencies(usage: Usage, layer: int, modalities: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    """How often the tokens of a layer select each expert, the modalities counting alike.

    Args:
        usage: Load statistics of the model.
        layer: Number of the block.
        modalities: Those that the result shall understand.
        names: Experts by name within the layer (``specialised.opt.2``, ``collaborative.0``, ``shared``).

    Raises:
        ConfigError: The statistics know nothing of a modality.
    """
    found = []
    shares = {key: usage.shares(layer, key) for key in modalities}
    for name in names:
        family, *rest = name.split(".")
        if family == "shared":
            found.append(1.0)
        elif family == "specialised":
            key, k = rest
            found.append(shares[key][int(k)] / len(modalities))
        else:
            place = usage.num_specialised + int(rest[0])
            found.append(sum(of_key[place] for of_key in shares.values()) / len(modalities))
    return tuple(found)


def weights(selected: Sequence[float]) -> tuple[float, ...]:
    """Weights in proportion to frequencies whose sum is the number of experts: equal ones are the plain mode.

    Args:
        selected: Frequency of each expert; not all are 0.
    """
    total = sum(selected)
    return tuple(len(selected) * each / total for each in selected)
