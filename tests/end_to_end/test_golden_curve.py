"""The first losses of ``tiny`` stay what they were: a change that moves them is a change of what is trained.

A deliberate change of model, data or optimiser moves the curve: then the new one goes into ``golden_tiny.json`` (the
failure shows it), and the change says why.
"""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from ringmoe.testing.ranks import run_ranks
from tests.fixtures.shards import build_shards

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "golden_tiny.json"


def _losses(shards: str, output: str) -> list[float]:
    from ringmoe.distributed.launch import start
    from ringmoe.train.build import build_trainer
    from ringmoe.train.command import parse
    from tests.fixtures.small_run import rows_of

    options = "--preset tiny --data.micro-batch 8 --schedule.warmup 2 --schedule.steps 8 --evaluation.masks 1"
    config = parse([*options.split(), "--data.shards", shards, "--output", output], os.environ)
    with closing(build_trainer(config, start())) as trainer:
        trainer.fit()
    return [row["loss"] for row in rows_of(Path(output)) if "loss" in row]


@pytest.mark.distributed
def test_the_first_losses_of_tiny(tmp_path):
    shards = build_shards(tmp_path, tile=96, side=256)
    [losses] = run_ranks(_losses, 1, str(shards), str(tmp_path / "run"), init=False)
    golden = json.loads(GOLDEN.read_text())
    assert losses == pytest.approx(golden["losses"], rel=golden["relative_tolerance"]), f"now {losses}"
