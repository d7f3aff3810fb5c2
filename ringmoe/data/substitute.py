"""What is read where a tile is not what was written: another one of its folder, the same on any number of ranks.

Which one is a function of the bad tile's turn alone (its image key, which holds seed, epoch and sample). So nothing has
to be agreed upon or remembered: N ranks equal one, and a continued run equals one that was not stopped. The image keeps
the key of its turn, so the substitute is cropped and masked in another way than in the turn of its own.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.batch import BadTile
from ringmoe.data.read import Integers, TileReader
from ringmoe.errors import ShardError, TileError

# N samples of a request

_TRIES = 32  # tiles in the place of one; where none can be read, the folder is what is bad


def find_bad(reader: TileReader, samples_N: Integers) -> Iterator[tuple[int, BadTile]]:
    """Reads samples one by one.

    Yields:
        Place in the request of each that is not what was written, and what is wrong with it.

    Raises:
        ShardError: It cannot be known of one.
    """
    for place, sample in enumerate(samples_N.tolist()):
        if (fault := _fault(reader, sample)) is not None:
            name = reader.name(sample)
            yield place, BadTile(reader.statistics.spec.key, name, fault.removeprefix(f"{name}: "))


def substituted(reader: TileReader, samples_N: Integers, keys_N: Tensor) -> tuple[Integers, tuple[BadTile, ...]]:
    """Samples of which each can be read.

    Args:
        reader: Reads them.
        samples_N: (N,) int64.
        keys_N: (N,) int64, the key of each image.

    Returns:
        The samples, others in the place of those that cannot be read, and these.

    Raises:
        ShardError: Nothing in the folder of a sample seems to be readable, or it cannot be known.
    """
    chosen_N, bad = samples_N.copy(), []
    for place, tile in find_bad(reader, samples_N):
        chosen_N[place] = _substitute(reader, int(samples_N[place]), keys_N[place], tile)
        bad.append(tile)
    return chosen_N, tuple(bad)


def _substitute(reader: TileReader, sample: int, key: Tensor, tile: BadTile) -> int:
    folder = reader.folder_of(sample)
    draws_T = counter.mix(counter.mix(key, counter.key("substitute")), torch.arange(_TRIES))
    for other in (folder.start + draws_T % len(folder)).tolist():
        if _fault(reader, other) is None:
            return int(other)
    raise ShardError(
        f"{tile.name}: {tile.reason} And none of {_TRIES} other tiles of its folder that were tried in its place can "
        "be read: the folder is damaged, not a tile"
    )


def _fault(reader: TileReader, sample: int) -> str | None:
    """What is wrong with a sample; None where it can be read."""
    try:
        reader.read(np.array([sample]))
    except TileError as error:
        return str(error)
    return None
