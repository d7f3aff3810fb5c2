"""The order of samples: a pure function of (seed, epoch, sizes of the shards), computed position by position.

An epoch permutes the shards, takes them in windows of a few shards, and permutes the samples within each window. So a
reader works on few files at a time and neighbours in the order come from different scenes. Nothing of the size of the
data set is ever held: the permutation of a window is a Feistel network on just enough bits, walked until it lands
inside (Black and Rogaway, 2002). Continuing at any position costs as much as starting.

Data sets that are mixed in fixed shares have an order and epochs of their own each; the stream of positions is dealt
out to them block by block (``MixedOrder``).

Who reads what is arithmetic on positions (``micro_batch_positions``): the number of ranks never changes the order.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ringmoe import counter

# N positions asked for, S shards, D data sets, P positions of a block

BLOCK = 4096  # positions of which each of several mixed data sets has a fixed number

_NUM_ROUNDS = 10  # with fewer, windows of a handful of samples prefer some permutations


def permute(positions_N: Tensor, size: int, key: int) -> Tensor:
    """Maps each of ``0..size-1`` to another one of them, one to one; every key gives another permutation.

    Args:
        positions_N: (N,) int64, each in ``0..size-1``.
        size: How many elements are permuted.
        key: Integer below 2^63.
    """
    bits = (size - 1).bit_length()
    keys_R = counter.mix(torch.tensor(key), torch.arange(_NUM_ROUNDS))
    result_N = _feistel(positions_N, bits, keys_R)
    # 2^bits < 2 * size: each step lands inside with more than even odds
    while (outside_N := result_N >= size).any():
        result_N[outside_N] = _feistel(result_N[outside_N], bits, keys_R)
    return result_N


def _feistel(x_N: Tensor, bits: int, keys_R: Tensor) -> Tensor:
    """A keyed one-to-one map of ``bits``-bit integers: each half is changed in turn by a hash of the other."""
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    low_N, high_N = x_N & low_mask, x_N >> low_bits
    for i, key in enumerate(keys_R):
        if i % 2:
            low_N = low_N ^ (counter.mix(high_N, key) & low_mask)
        else:
            high_N = high_N ^ (counter.mix(low_N, key) & high_mask)
    return high_N << low_bits | low_N


class SampleOrder:
    """The endless order of one modality's samples, epoch after epoch.

    Args:
        samples_S: Samples of each shard, in the order of the manifest.
        seed: Another seed gives another order.
        window: Shards whose samples are mixed with each other; all of them where it is at least their number.
    """

    def __init__(self, samples_S: Sequence[int], *, seed: int, window: int) -> None:
        self._samples_S = torch.tensor(samples_S, dtype=torch.int64)
        self._first_S = self._samples_S.cumsum(0) - self._samples_S  # index of each shard's first sample
        self._seed = seed
        self._window = window
        self.num_samples = int(self._samples_S.sum())
        self.epoch_length = self.num_samples  # positions until each sample came once
        self._epoch_shards = lru_cache(maxsize=2)(self._permuted_shards)

    def locate(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """What stands at these positions.

        Args:
            positions_N: (N,) int64, ascending; position ``p`` lies in epoch ``p // num_samples``.

        Returns:
            epochs_N: (N,) int64, the epoch of each.
            samples_N: (N,) int64, index of each sample, counted through the shards in the order of the manifest.
        """
        epochs_N = positions_N // self.num_samples
        offsets_N = positions_N % self.num_samples
        samples_N = torch.empty_like(positions_N)
        for epoch in range(int(epochs_N[0]), int(epochs_N[-1]) + 1):
            here_N = epochs_N == epoch
            samples_N[here_N] = self._locate_in_epoch(offsets_N[here_N], epoch)
        return epochs_N, samples_N

    def num_met(self, positions: int) -> int:
        """Samples that stand at the first so many positions, each counted once."""
        return min(positions, self.num_samples)

    def _permuted_shards(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The shards in the order of an epoch (S,), and where each ends in it (S,)."""
        draws_S = counter.mix(
            torch.tensor(counter.key(self._seed, "shards", epoch)), torch.arange(len(self._samples_S))
        )
        shards_S = draws_S.argsort(stable=True)
        return shards_S, self._samples_S[shards_S].cumsum(0)

    def _locate_in_epoch(self, offsets_N: Tensor, epoch: int) -> Tensor:
        shards_S, ends_S = self._epoch_shards(epoch)
        windows_N = torch.searchsorted(ends_S, offsets_N, right=True) // self._window
        mixed_N = torch.empty_like(offsets_N)
        for window in range(int(windows_N[0]), int(windows_N[-1]) + 1):
            here_N = windows_N == window
            start = int(ends_S[window * self._window - 1]) if window else 0
            end = int(ends_S[min((window + 1) * self._window, len(ends_S)) - 1])
            key = counter.key(self._seed, "samples", epoch, window)
            mixed_N[here_N] = start + permute(offsets_N[here_N] - start, end - start, key)
        slots_N = torch.searchsorted(ends_S, mixed_N, right=True)
        shards_N = shards_S[slots_N]
        return self._first_S[shards_N] + mixed_N - (ends_S[slots_N] - self._samples_S[shards_N])


class MixedOrder:
    """The endless order of several data sets in fixed shares; the samples are counted data set after data set.

    Each block of ``BLOCK`` positions deals the same number to each data set, in an order of its own, and a data set
    takes what it is dealt in its own order. So every prefix of the stream holds a prefix of each data set's order:
    none of its samples comes twice before all of them came once, wherever a run stops.

    Args:
        orders: Of each data set.
        shares: Positions of each data set in a block; they add up to ``BLOCK``.
        seed: Another seed deals differently.
    """

    def __init__(self, orders: Sequence[SampleOrder], shares: Sequence[int], *, seed: int) -> None:
        self._orders = orders
        self._shares_D = torch.tensor(shares, dtype=torch.int64)
        self._ends_D = self._shares_D.cumsum(0)
        self._seed = seed
        sizes_D = torch.tensor([order.num_samples for order in orders])
        self._first_D = sizes_D.cumsum(0) - sizes_D
        self.epoch_length = max(
            -(-order.epoch_length * BLOCK // share) for order, share in zip(orders, shares, strict=True)
        )
        self._dealt_block = lru_cache(maxsize=4)(self._deal)

    def locate(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """What stands at these positions, as in ``SampleOrder.locate``; each epoch is that of the sample's data set."""
        sets_N, places_N = self.deal(positions_N)
        epochs_N, samples_N = torch.empty_like(positions_N), torch.empty_like(positions_N)
        for number in torch.unique(sets_N).tolist():
            here_N = sets_N == number
            epochs_N[here_N], found_M = self._orders[number].locate(places_N[here_N])
            samples_N[here_N] = self._first_D[number] + found_M
        return epochs_N, samples_N

    def deal(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """The data set that each position belongs to, and the position in its own order: (N,) int64 each."""
        sets_N, places_N = torch.empty_like(positions_N), torch.empty_like(positions_N)
        blocks_N = positions_N // BLOCK
        for block in range(int(blocks_N[0]), int(blocks_N[-1]) + 1):
            here_N = blocks_N == block
            sets_P, ranks_P = self._dealt_block(block)
            offsets_M = positions_N[here_N] - block * BLOCK
            sets_N[here_N] = sets_M = sets_P[offsets_M]
            places_N[here_N] = block * self._shares_D[sets_M] + ranks_P[offsets_M]
        return sets_N, places_N

    def num_met(self, positions: int) -> int:
        """Samples that stand at the first so many positions, each counted once."""
        block, rest = divmod(positions, BLOCK)
        dealt_D = block * self._shares_D + self._dealt_block(block)[0][:rest].bincount(minlength=len(self._orders))
        return sum(order.num_met(dealt) for order, dealt in zip(self._orders, dealt_D.tolist(), strict=True))

    def _deal(self, block: int) -> tuple[Tensor, Tensor]:
        """Of each position of a block: its data set, and how many positions before it are of the same one."""
        slots_P = permute(torch.arange(BLOCK), BLOCK, counter.key(self._seed, "sets", block))
        sets_P = torch.searchsorted(self._ends_D, slots_P, right=True)
        by_set_P = sets_P.argsort(stable=True)
        ranks_P = torch.empty_like(by_set_P)
        ranks_P[by_set_P] = torch.arange(BLOCK) - (self._ends_D - self._shares_D)[sets_P[by_set_P]]
        return sets_P, ranks_P


def micro_batch_positions(step: int, micro: int, *, images: int, rank: int, world: int, accumulation: int) -> Tensor:
    """Positions that one rank reads for one micro-batch of one modality: (images,) int64.

    Global batch ``g`` holds positions ``g * G`` to ``(g + 1) * G``, ``G = images * world * accumulation``; its
    micro-batches lie one behind the other, and rank ``r`` takes number ``micro * world + r``. So ranks that together
    take the same ``G`` train on the same global batches, however many they are.
    """
    first = ((step * accumulation + micro) * world + rank) * images
    return torch.arange(first, first + images)


def even_share(num_samples: int, *, batch_size: int, rank: int, world: int) -> list[range]:
    """What one rank reads when every sample is wanted once, in batches of at most ``batch_size``.

    Every rank gets equally many batches, so that collectives match; sizes differ by one at most. A batch can be empty
    only where there are fewer samples than ranks, or with a batch size of one.
    """
    rounds = -(-num_samples // (batch_size * world))
    num_batches = rounds * world
    bounds = [i * num_samples // num_batches for i in range(num_batches + 1)] if rounds else [0]
    return [range(bounds[i], bounds[i + 1]) for i in range(rank, num_batches, world)]
