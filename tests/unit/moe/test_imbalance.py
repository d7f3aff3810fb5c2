"""The load of a routing that is known."""

import pytest
import torch

from ringmoe.moe.imbalance import dead_experts, imbalance


@pytest.fixture
def counts_LME():
    """Two layers, two modalities of 8 and 80 tokens, two specialised and four collaborative experts."""
    even = [[4, 4, 2, 2, 2, 2], [40, 40, 20, 20, 20, 20]]
    skewed = [[6, 2, 8, 0, 0, 0], [40, 40, 80, 0, 0, 0]]
    return torch.tensor([even, skewed], dtype=torch.float64)


def test_each_family_is_measured_by_its_own_mean(counts_LME):
    found = imbalance(counts_LME, num_specialised=2, collaborative_L=torch.tensor([4, 4]), expert_parallel=1)
    assert {name: ratio_X.tolist() for name, ratio_X in found.items()} == {
        "specialised": [1.0, 1.0, 1.5, 1.0],  # a modality with ten times the images is not ten times as uneven
        "collaborative": [1.0, 4.0],
    }


def test_rows_of_ranks_are_those_of_their_experts(counts_LME):
    found = imbalance(counts_LME, num_specialised=2, collaborative_L=torch.tensor([4, 4]), expert_parallel=2)
    # the second layer's rank 0 holds the first specialised experts and the one collaborative expert that is used
    assert found["ranks"].tolist() == pytest.approx([1.0, 2 * (6 + 40 + 88) / (2 * 88)])


def test_pruned_experts_are_not_idle_ones(counts_LME):
    found = imbalance(counts_LME, num_specialised=2, collaborative_L=torch.tensor([4, 1]), expert_parallel=1)
    assert found["collaborative"].tolist() == [1.0, 1.0]


def test_what_saw_no_token_has_no_ratio(counts_LME):
    counts_LME[0, 1] = 0
    counts_LME[:, :, 2:] = 0
    found = imbalance(counts_LME, num_specialised=2, collaborative_L=torch.tensor([4, 4]), expert_parallel=1)
    assert {name: len(ratio_X) for name, ratio_X in found.items()} == {"specialised": 3}


def test_experts_that_hardly_any_token_chose_are_named():
    counts_LME = torch.full((2, 2, 6), 1000.0)  # four specialised of each modality, two collaborative
    counts_LME[0, 1, 2] = 7  # of a mean of 752
    counts_LME[1, 0, 0] = 8
    counts_LME[1, :, 5] = torch.tensor([4.0, 0.0])
    options = {"modalities": ("opt", "ms"), "num_specialised": 4, "collaborative": [(0, 1), (0, 1)]}
    found = dead_experts(counts_LME, **options)
    assert found == ["blocks.0.moe.specialised.ms.2", "blocks.1.moe.collaborative.1"]
    counts_LME[1, 0, 0] = 7
    pruned = dead_experts(counts_LME, **(options | {"collaborative": [(0, 1), (0,)]}))
    assert pruned == ["blocks.0.moe.specialised.ms.2", "blocks.1.moe.specialised.opt.0"]
    assert dead_experts(torch.zeros_like(counts_LME), **options) == []
