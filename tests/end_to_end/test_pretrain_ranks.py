"""Several ranks train what one process trains, with all four modalities in every micro-batch."""

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ringmoe.distributed.launch import start
from ringmoe.naming import canonical_entries
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.build import build_model_and_engine
from ringmoe.train.command import parse
from ringmoe.train.loaders import train_loader
from ringmoe.train.metrics import Metrics
from ringmoe.train.step import train_step
from tests.fixtures.small_run import small_run

pytestmark = pytest.mark.distributed

STEPS = 5
ZERO_2 = " --parallel.engine zero2"


def _train(arguments: list[str]) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Five steps; what was logged, and the weights that this rank owns by global name."""
    world = start()
    config = parse(arguments, os.environ)
    model, engine = build_model_and_engine(config, world)
    metrics = Metrics()
    with closing(train_loader(config, rank=world.rank, world=world.size)) as loader:
        for step in range(STEPS):
            engine.set_lr(config.optimiser.lr)
            batches = [loader.batch(step, micro) for micro in range(config.batch.accumulation)]
            train_step(engine, batches, metrics, world.device, model.parallel.clock)
            metrics.end_step(step + 1)
    owned = {name: state["weight"].numpy() for name, state in engine.state_of(canonical_entries(model))}
    return [row.scalars for row in metrics.flush()], owned


def _run(shards: Path, ranks: int, options: str) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    arguments = small_run(shards, Path("unused"), steps=10, options=f"--optimiser.clip 0.5 {options}")
    results = run_ranks(_train, ranks, arguments, init=False)
    rows = [rows for rows, _ in results]
    assert all(other == rows[0] for other in rows)
    return rows[0], {name: weight for _, owned in results for name, weight in owned.items()}


@pytest.fixture(scope="module")
def one_process(shards):
    """The reference for any number of ranks: one process that accumulates as many micro-batches."""
    done = {}

    def run(num_micro_batches):
        if num_micro_batches not in done:
            done[num_micro_batches] = _run(shards, 1, f"--batch.accumulation {num_micro_batches}")
        return done[num_micro_batches]

    return run


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, ""),
        (2, "--parallel.expert-parallel 2"),
        (2, "--parallel.expert-parallel 2" + ZERO_2),
        pytest.param(2, ZERO_2, marks=pytest.mark.slow),
        pytest.param(2, "--parallel.expert-parallel 2 --model.top-k 2" + ZERO_2, marks=pytest.mark.slow),
        pytest.param(4, "--parallel.expert-parallel 2", marks=pytest.mark.slow),
        pytest.param(4, "--parallel.expert-parallel 4", marks=pytest.mark.slow),
        pytest.param(4, "--parallel.expert-parallel 4" + ZERO_2, marks=pytest.mark.slow),
    ],
)
def test_ranks_equal_one_process(ranks, options, one_process, shards):
    if "top-k" in options:
        expected_rows, expected = _run(shards, 1, f"--batch.accumulation {ranks} --model.top-k 2")
    else:
        expected_rows, expected = one_process(ranks)
    rows, weights = _run(shards, ranks, options)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-6, abs=1e-7)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert np.abs(weight - expected[name]).max() <= 1e-6, name


def test_accumulated_micro_batches_are_those_of_the_ranks(one_process, shards):
    """The reference itself: two micro-batches of one process are another step than one."""
    assert one_process(2)[0][0]["loss"] != one_process(1)[0][0]["loss"]
