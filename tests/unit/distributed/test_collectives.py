"""Agreements between ranks, on real ranks and in a world of one."""

import pytest
import torch
import torch.distributed as dist

from ringmoe.distributed.collectives import barrier, gather_json, reduce_metrics
from ringmoe.testing.ranks import run_ranks


def _metrics(rank: int):
    return {
        "loss": (torch.tensor(1.0 + rank), "mean"),
        "tokens_M": (torch.tensor([10, 20 + rank]), "sum"),
        "peak": (torch.tensor([[float(rank), -rank]]), "max"),
        "lr": (torch.tensor(0.5), "last"),
    }


def test_alone_everything_is_its_own_answer():
    reduced = reduce_metrics(_metrics(1))
    assert {name: value.tolist() for name, value in reduced.items()} == {
        "loss": 2.0,
        "tokens_M": [10.0, 21.0],
        "peak": [[1.0, -1.0]],
        "lr": 0.5,
    }
    assert gather_json("x") == ["x"]
    barrier("nobody")


def _agree() -> dict:
    rank = dist.get_rank()
    reduced = {name: value.tolist() for name, value in reduce_metrics(_metrics(rank)).items()}
    barrier("the test")
    return {
        "reduced": reduced,
        "gathered": gather_json([rank] * (3 * rank)),
        "texts": gather_json({"from": rank, "text": "\u00e9" * (rank + 1)}),
    }


def _one_stays_away() -> str:
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError) as caught:
            barrier("the checkpoint")
        return str(caught.value)
    dist.destroy_process_group()
    return ""


@pytest.mark.distributed
def test_two_ranks_come_to_one_answer():
    for answer in run_ranks(_agree, 2):
        assert answer["reduced"] == {"loss": 1.5, "tokens_M": [20.0, 41.0], "peak": [[1.0, 0.0]], "lr": 0.5}
        assert answer["gathered"] == [[], [1, 1, 1]]
        assert answer["texts"] == [{"from": 0, "text": "\u00e9"}, {"from": 1, "text": "\u00e9\u00e9"}]


@pytest.mark.distributed
def test_a_barrier_that_fails_says_what_it_waited_for():
    message = run_ranks(_one_stays_away, 2, timeout=20.0)[0]
    assert "rank 0 waited in vain for the others (the checkpoint)" in message
