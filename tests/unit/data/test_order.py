import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringmoe import counter
from ringmoe.data.order import BLOCK, MixedOrder, SampleOrder, even_share, micro_batch_positions, permute

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**62))
@settings(max_examples=40, deadline=None)
def test_permute_is_one_to_one(size, key):
    assert sorted(permute(torch.arange(size), size, key).tolist()) == list(range(size))


def test_every_permutation_of_a_few_is_equally_likely():
    draws = torch.stack([permute(torch.arange(4), 4, counter.key("draw", k)) for k in range(1200)])
    counts = torch.unique(draws, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    # chi-square with 23 degrees of freedom: below 50 with probability 0.999
    assert ((counts - 50.0) ** 2 / 50).sum() < 50


@given(sizes=SIZES, window=st.integers(1, 14), seed=st.integers(0, 99), batch=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_each_sample_comes_once_in_every_epoch(sizes, window, seed, batch):
    order = SampleOrder(sizes, seed=seed, window=window)
    total = order.num_samples
    steps = [order.locate(torch.arange(first, first + batch)) for first in range(0, 2 * total + batch, batch)]
    epochs, samples = (torch.cat(parts)[: 2 * total] for parts in zip(*steps, strict=True))
    assert epochs.tolist() == [0] * total + [1] * total
    for epoch in range(2):
        assert sorted(samples[epochs == epoch].tolist()) == list(range(total))


def test_order_depends_on_seed_and_epoch_only():
    sizes = [40, 7, 23, 60]
    first, again, other = (SampleOrder(sizes, seed=seed, window=2) for seed in (1, 1, 2))
    positions = torch.arange(2 * 130)
    samples = first.locate(positions)[1]
    assert again.locate(positions[200:])[1].equal(samples[200:])
    assert not other.locate(positions)[1].equal(samples)
    assert not samples[:130].equal(samples[130:])


def test_a_window_reads_only_its_shards_and_mixes_them():
    order = SampleOrder([50] * 20, seed=3, window=4)
    shards = order.locate(torch.arange(1000))[1] // 50
    for window in shards.split(200):
        assert len(window.unique()) == 4
        assert (window[1:] != window[:-1]).float().mean() > 0.6  # 3/4 where neighbours are independent
    ranks = np.corrcoef(order.locate(torch.arange(1000))[1].numpy(), np.arange(1000))[0, 1]
    assert abs(ranks) < 0.5


def _mixed(sizes, shares, seed=5):
    orders = [SampleOrder(each, seed=number, window=2) for number, each in enumerate(sizes)]
    return MixedOrder(orders, shares, seed=seed), orders


def test_mixed_sets_keep_their_shares_order_and_epochs():
    sizes, shares = ([40, 25, 60], [300, 300], [5]), (1024, 3065, 7)
    order, alone = _mixed(sizes, shares)
    positions = torch.arange(3 * BLOCK + 100)
    epochs, samples = order.locate(positions)
    first = 0
    for number, (each, share) in enumerate(zip(sizes, shares, strict=True)):
        here = (samples >= first) & (samples < first + sum(each))
        assert [int(block.sum()) for block in here[: 3 * BLOCK].split(BLOCK)] == [share] * 3
        # what a set is dealt is its own order from the beginning, without a gap, wherever one stops
        expected_epochs, expected = alone[number].locate(torch.arange(int(here.sum())))
        assert (samples[here] - first).equal(expected)
        assert epochs[here].equal(expected_epochs)
        first += sum(each)
    assert order.epoch_length == -(-5 * BLOCK // 7)  # until the set of the smallest share is through


def test_a_mixed_order_can_be_asked_anywhere():
    order, _ = _mixed(([40, 25], [300, 300]), (4000, 96))
    whole = order.locate(torch.arange(2 * BLOCK))
    again, _ = _mixed(([40, 25], [300, 300]), (4000, 96))
    for first, last in ((5000, 5003), (BLOCK - 2, BLOCK + 2), (0, 1)):
        part = again.locate(torch.arange(first, last))
        assert all(found[first:last].equal(mine) for found, mine in zip(whole, part, strict=True))
    assert not _mixed(([40, 25], [300, 300]), (4000, 96), seed=6)[0].locate(torch.arange(99))[1].equal(whole[1][:99])
    # no set comes in a row or in a rhythm: the rarer one stands anywhere among 4096 positions
    rare = (whole[1][:BLOCK] >= 65).nonzero()[:, 0].float()
    assert abs(rare.mean() / BLOCK - 0.5) < 0.1
    assert rare.diff().std() > 0.7 * rare.diff().mean()


@pytest.mark.parametrize(("world", "accumulation", "images"), [(1, 1, 24), (2, 1, 12), (4, 3, 2), (1, 4, 6), (3, 2, 4)])
def test_ranks_share_the_same_global_batch(world, accumulation, images):
    for step in (0, 5):
        read = [
            micro_batch_positions(step, micro, images=images, rank=rank, world=world, accumulation=accumulation)
            for micro in range(accumulation)
            for rank in range(world)
        ]
        assert torch.cat(read).tolist() == list(range(24 * step, 24 * (step + 1)))


@given(num=st.integers(0, 200), batch=st.integers(1, 20), world=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_even_share_gives_every_sample_once_and_every_rank_as_many_batches(num, batch, world):
    shares = [even_share(num, batch_size=batch, rank=rank, world=world) for rank in range(world)]
    assert sorted(i for share in shares for part in share for i in part) == list(range(num))
    assert len({len(share) for share in shares}) == 1
    sizes = [len(part) for share in shares for part in share]
    assert not sizes or (max(sizes) <= batch and max(sizes) - min(sizes) <= 1)
    assert num < world or batch == 1 or all(sizes)


def test_locating_does_not_depend_on_the_number_of_samples():
    order = SampleOrder([10_000] * 40_000, seed=0, window=16)
    epochs, samples = order.locate(torch.arange(399_999_990, 400_000_010))
    assert epochs.tolist() == [0] * 10 + [1] * 10
    assert samples.min() >= 0
    assert samples.max() < order.num_samples
