"""The helper that starts ranks must itself tell the truth."""

import pytest
import torch
import torch.distributed as dist

from ringmoe.testing.ranks import run_ranks

pytestmark = pytest.mark.distributed


def _sum_of_ranks() -> float:
    value = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(value)
    return value.item()


def _one_raises() -> None:
    if dist.get_rank() == 1:
        raise ValueError("only here")


def test_every_rank_answers_in_order():
    assert run_ranks(_sum_of_ranks, 2) == [3.0, 3.0]


def test_the_traceback_of_the_rank_that_raised_is_shown():
    with pytest.raises(RuntimeError, match=r"rank 1 raised[\s\S]*only here"):
        run_ranks(_one_raises, 2)
