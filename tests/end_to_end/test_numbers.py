"""Numbers that go wrong while a run trains: the step is left out, its micro-batch kept, the culprit named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from ringmoe.checkpoint.runs import open_checkpoint, step_folders
from ringmoe.distributed.launch import World
from ringmoe.errors import TrainingError
from ringmoe.naming import canonical_entries
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.command import parse
from ringmoe.train.loaders import train_loader
from ringmoe.train.trainer import Trainer
from tests.fixtures import training
from tests.fixtures.shards import change_tiles
from tests.fixtures.small_run import rows_of, small_run, weights_of
from tests.fixtures.training import SignalAfter

STEPS = 8
ENGINES = ("zero1", "zero2", "lean")


class States(Callback):
    """Notes a checksum over weights and moments after each step."""

    def __init__(self) -> None:
        self.digests: list[str] = []

    def after_step(self, trainer: Trainer) -> None:
        digest = hashlib.sha256()
        for _, state in trainer.engine.state_of(canonical_entries(trainer.model)):
            for value in state.values():
                digest.update(value.numpy().tobytes())
        self.digests.append(digest.hexdigest())


@pytest.fixture(scope="module")
def train(world: World) -> Callable[..., str]:
    """Runs the command with some options and gives what it says."""

    def run(shards: Path, output: Path, *added: Callback, options: str = "") -> str:
        return training.train(small_run(shards, output, steps=STEPS, options=options), world, *added)

    return run


def poisoned(shards: Path, folder: Path, steps: tuple[int, ...]) -> tuple[Path, list[str]]:
    """A copy of the shards with NaN in one tile of each of these steps, and their names."""
    config = parse(small_run(shards, folder, steps=STEPS), {})
    with closing(train_loader(config, rank=0, world=1)) as loader:
        names = [loader.batch(step - 1, 0).images["sar_l1"].sample_ids[0] for step in steps]
    root = Path(shutil.copytree(shards, folder / shards.name))
    change_tiles(root, "sar_l1", names, lambda values: np.full_like(values, np.nan))
    return root, names


@pytest.fixture(scope="module")
def one(shards, tmp_path_factory) -> tuple[Path, list[str]]:
    return poisoned(shards, tmp_path_factory.mktemp("one"), (4,))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_is_not_finite_is_left_out_named_and_kept(one, train, tmp_path, engine):
    root, (name,) = one
    run, parts, states = tmp_path / "run", tmp_path / "parts", States()
    options = f"--parallel.engine {engine} --every.checkpoint 4 --keep-last 9"
    said = train(root, run, states, options=options)
    rows = {row["step"]: row for row in rows_of(run) if "loss" in row}
    assert [row["skipped"] for row in rows.values()] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert "step 4: loss, loss/sar_l1" in said
    assert f"sar_l1 is nan on rank 0, micro-batch 0: {name}" in said
    assert "the first layer whose output is not finite is embed" in said
    assert "not saved after step 4" in said
    assert "left out for numbers that were not finite: 1 of 8 steps" in said
    assert [folder.name for folder in step_folders(run)] == ["step-00000008"]
    assert open_checkpoint(run).trainer["updates"] == 7
    with safe_open(run / "not_finite/step-00000004-rank0-micro0.safetensors", framework="np") as kept:
        assert name in json.loads(kept.metadata()["sar_l1.sample_ids"])
        assert np.isnan(kept.get_tensor("sar_l1.pixels_BCHW")[0]).all()
        assert np.isfinite(kept.get_tensor("opt.pixels_BCHW")).all()
    assert states.digests[3] == states.digests[2] != states.digests[1], "weights and moments are those of before"
    # nor is the step counted by which AdamW corrects its moments, also not by a run that goes on behind it
    train(root, parts, SignalAfter(5), options=options)
    train(root, parts, options=options)
    assert weights_of(parts) == weights_of(run)
    assert rows_of(parts) == rows_of(run)


def test_what_ends_behind_such_a_step_is_saved_beside_the_one_before(one, train, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "not_finite").write_text("a file where the folder would be")
    options = "--parallel.engine lean --every.checkpoint 3 --keep-last 1"
    said = train(one[0], run, SignalAfter(4), options=options)
    assert "step-00000004-rank0-micro0.safetensors could not be kept: " in said
    assert "saved after step 4 though its numbers were not finite: one checkpoint more is kept" in said
    assert [folder.name for folder in step_folders(run)] == ["step-00000004", "step-00000003"]


def test_too_many_in_a_row_stop_the_run(shards, train, tmp_path):
    root, _ = poisoned(shards, tmp_path, (3, 4, 5))
    options = "--parallel.engine lean --numbers.skips "
    assert "not finite: 3 of 8 steps" in train(root, tmp_path / "three", options=options + "3")
    with pytest.raises(TrainingError, match=r"step 5: loss.*sar_l1 is nan.*number 3 in a row, 2 are left out"):
        train(root, tmp_path / "two", options=options + "2")
    assert not step_folders(tmp_path / "two")


def test_an_engine_that_takes_steps_while_gradients_come_stops_at_once(one, train, tmp_path):
    with pytest.raises(
        TrainingError, match=r"step 4: loss.*the weights .* are not finite.*Nothing of this step was sav"
    ):
        train(one[0], tmp_path / "run", options="--parallel.engine lean --optimiser.clip 0")
