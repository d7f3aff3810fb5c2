"""Metrics are reduced as their record says, over micro-batches and over ranks."""

import pytest
import torch
import torch.distributed as dist

from ringmoe.testing.ranks import run_ranks
from ringmoe.train.metrics import Metrics


def test_micro_batches_become_one_value_for_each_step():
    metrics = Metrics()
    for step, values in enumerate(([1.0, 3.0], [5.0, 6.0]), start=1):
        for value in values:
            metrics.record("loss", torch.tensor(value, requires_grad=True), "mean")
            metrics.record("counts", torch.full((2, 3), value), "sum")
        metrics.end_step(step)
    rows = metrics.flush()
    assert [(row.step, row.scalars) for row in rows] == [(1, {"loss": 2.0}), (2, {"loss": 5.5})]
    assert rows[1].arrays["counts"].tolist() == [[11.0] * 3] * 2
    assert metrics.flush() == []


def test_a_changed_reduction_is_an_error():
    metrics = Metrics()
    metrics.record("loss", torch.tensor(1.0), "mean")
    with pytest.raises(ValueError, match="'loss' was recorded with reduction 'mean', now with 'sum'"):
        metrics.record("loss", torch.tensor(1.0), "sum")


def _two_steps_of_a_rank() -> list[tuple[dict[str, float], list[float]]]:
    metrics = Metrics()
    for step in (1, 2):
        metrics.record("loss", torch.tensor(10.0 * step + dist.get_rank()), "mean")
        metrics.record("counts", torch.tensor([1.0, float(dist.get_rank())]), "sum")
        metrics.end_step(step)
    return [(row.scalars, row.arrays["counts"].tolist()) for row in metrics.flush()]


@pytest.mark.distributed
def test_ranks_agree_on_the_reduced_values():
    expected = [({"loss": 10.5}, [2.0, 1.0]), ({"loss": 20.5}, [2.0, 1.0])]
    assert run_ranks(_two_steps_of_a_rank, 2) == [expected, expected]


def test_one_value_for_all_steps_since_the_last_flush():
    metrics = Metrics()
    for step in (1, 2, 3):
        metrics.record("loss", torch.tensor(1.0 * step), "mean")
        metrics.end_step(step)
        if step > 1:
            metrics.record_all("mfu", 0.1 * step, "mean")
            rows = metrics.flush()
            assert [row.scalars["mfu"] for row in rows] == [0.1 * step] * len(rows)
