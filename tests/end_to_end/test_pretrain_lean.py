"""A whole run with the lean engine: it needs no DeepSpeed, goes on bit for bit, and learns what DeepSpeed's learns."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from ringmoe.checkpoint.runs import step_folder
from ringmoe.distributed.launch import World
from ringmoe.errors import ConfigError, TrainingError
from ringmoe.train.build import build_trainer
from ringmoe.train.command import parse
from tests.fixtures.jobs import ROOT
from tests.fixtures.launchers import variables
from tests.fixtures.small_run import rows_of, small_run, weights_of

LEAN = "--parallel.engine lean"


@pytest.fixture
def train(world: World, shards: Path) -> Callable[..., None]:
    """Runs the command with some options."""

    def run(output: Path, *, steps: int, options: str = LEAN) -> None:
        config = parse(small_run(shards, output, steps=steps, options=options), {})
        with closing(build_trainer(config, world)) as trainer:
            trainer.fit()

    return run


def test_it_runs_where_no_deepspeed_is_installed(shards, tmp_path):
    absent = ("deepspeed", "fairscale", "mpi4py")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"  # importing one of them fails
        "sys.argv[0] = 'launcher/pretrain.py'\n"
        f"runpy.run_path({str(ROOT / 'launcher' / 'pretrain.py')!r}, run_name='__main__')"
    )
    arguments = small_run(shards, tmp_path / "run", steps=3, options=f"{LEAN} --optimiser.clip 0")
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environ | variables(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "run")) == 4  # and what was held out


@pytest.mark.parametrize("options", ["--optimiser.clip 0", "--optimiser.clip 0.5 --batch.accumulation 2"])
def test_a_run_that_is_continued_equals_one_that_was_not_stopped(options, train, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = f"{LEAN} --parallel.dtype bf16 --every.checkpoint 3 {options}"
    train(whole, steps=8, options=options)
    shutil.copytree(whole, parts, symlinks=True)
    for step in (6, 8):
        shutil.rmtree(step_folder(parts, step))
    train(parts, steps=8, options=options)
    assert rows_of(parts) == rows_of(whole)
    assert weights_of(parts) == weights_of(whole)


@pytest.mark.parametrize(("before", "after"), [("lean", "zero1"), ("zero1", "lean")])
def test_a_run_may_change_engines(before, after, train, tmp_path):
    options = "--every.checkpoint 3 --parallel.engine "
    train(tmp_path / "run", steps=6, options=options + before)
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    shutil.rmtree(step_folder(tmp_path / "run", 6))
    train(tmp_path / "run", steps=6, options=options + after)
    again = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    assert again[:3] == losses[:3]
    assert again == pytest.approx(losses, rel=0.02)


def test_recomputed_activations_change_nothing(train, tmp_path):
    for what in ("nothing", "experts", "blocks"):
        options = f"{LEAN} --parallel.dtype bf16 --optimiser.clip 0 --parallel.recompute {what}"
        train(tmp_path / what, steps=3, options=options)
    kept = weights_of(tmp_path / "nothing")
    assert weights_of(tmp_path / "experts") == kept
    assert weights_of(tmp_path / "blocks") == kept


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine takes minutes
def test_it_follows_deepspeed(train, tmp_path):
    """60 steps of the same run: the mean of 20 losses differs by 3 % at most, in bf16 without masters by 10 %.

    Two modalities are enough: a step of this engine costs what it has tensors.
    """
    curves = {}
    for name, options in (("zero1", ""), ("fp32", LEAN), ("bf16", f"{LEAN} --parallel.dtype bf16 --optimiser.clip 0")):
        train(tmp_path / name, steps=60, options=f"--model.modalities opt sar_l1 --optimiser.lr 2e-3 {options}")
        losses = [row["loss"] for row in rows_of(tmp_path / name) if "loss" in row]
        curves[name] = torch.tensor(losses).view(3, 20).mean(1)
    assert curves["zero1"][-1] < 0.7 * curves["zero1"][0]
    torch.testing.assert_close(curves["fp32"], curves["zero1"], rtol=0.03, atol=0)
    torch.testing.assert_close(curves["bf16"], curves["zero1"], rtol=0.1, atol=0)


def test_numbers_that_go_wrong_stop_the_run_unsaved(train, tmp_path):
    options = f"{LEAN} --optimiser.lr 1e30 --optimiser.clip 0 --every.checkpoint 4"
    with pytest.raises(TrainingError, match=r"step \d: .*not finite"):
        train(tmp_path / "run", steps=8, options=options)
    assert not step_folder(tmp_path / "run", 4).exists()


def test_several_ranks_are_refused_before_anything_starts(shards, tmp_path):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    arguments = small_run(shards, tmp_path, steps=8, options=LEAN)
    with pytest.raises(ConfigError, match=r"lean engine is for one device, here are 2 ranks.*zero1"):
        parse(arguments, variables)
