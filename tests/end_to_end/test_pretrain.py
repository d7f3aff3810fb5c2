"""A whole run in this process: what it learns and leaves behind, how it stops, goes on, and fails."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ringmoe.checkpoint.runs import open_checkpoint, step_folders
from ringmoe.cli import prune
from ringmoe.cli.evaluate import EvaluateConfig
from ringmoe.cli.evaluate import run as evaluate
from ringmoe.config import from_dict, load_yaml
from ringmoe.data.loader import DataConfig
from ringmoe.distributed.launch import World
from ringmoe.errors import CheckpointError, ConfigError, TrainingError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.usage import Usage
from ringmoe.naming import canonical_entries
from ringmoe.report.curves import read_rows, series
from ringmoe.train.build import build_trainer
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.command import parse
from ringmoe.train.evaluate import evaluate as judge
from ringmoe.train.loaders import whole_tiles_loader
from ringmoe.train.run import RunConfig
from ringmoe.train.trainer import Trainer
from tests.fixtures.small_run import rows_of, small_run, weights_of
from tests.fixtures.training import SignalAfter

MODALITIES = ("opt", "ms", "sar_l1", "sar_l2")


@pytest.fixture
def train(world: World, shards: Path) -> Callable[..., None]:
    """Runs the command with some options; callbacks may be added."""

    def run(output: Path, *added: Callback, steps: int, options: str = "") -> None:
        config = parse(small_run(shards, output, steps=steps, options=options), {})
        with closing(build_trainer(config, world)) as trainer:
            trainer.callbacks = [*trainer.callbacks, *added]
            trainer.fit()

    return run


@pytest.fixture(scope="module")
def finished(world: World, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 steps."""
    output = tmp_path_factory.mktemp("run") / "run"
    options = "--every.evaluation 20 --every.pictures 40 --every.checkpoint 30 --keep-last 2 --optimiser.lr 2e-3"
    config = parse(small_run(shards, output, steps=60, options=options), {})
    with closing(build_trainer(config, world)) as trainer:
        trainer.fit()
    return output


def test_the_loss_goes_down_and_held_out_tiles_are_understood_better(finished):
    rows = read_rows(finished / "metrics.jsonl")
    steps, losses = series(rows, "loss")
    assert steps == list(range(1, 61))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    ratios = [series(rows, f"val_ratio/{key}") for key in MODALITIES]
    assert all(steps == [20, 40, 60] for steps, _ in ratios)
    first, last = (sum(values[place] for _, values in ratios) for place in (0, -1))
    assert 0 < last < first


def test_the_loss_is_the_sum_of_what_is_logged(finished):
    for row in rows_of(finished)[:5]:
        reconstruction = sum(row[f"loss/{key}"] for key in MODALITIES)
        balance = sum(row[f"balance/{name}"] for name in (*MODALITIES, "collaborative"))
        assert row["loss"] == pytest.approx(reconstruction + 0.01 * balance, rel=1e-5)


def test_tensorboard_holds_everything(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    scalars = {"loss", "lr", "gradient_norm", "images_per_second", "tokens_per_second", "balance/collaborative"}
    scalars |= {"mfu", "peak_tflops", "data_wait", "memory_gib/host", "seconds/exchange", "imbalance_worst/specialised"}
    for key in MODALITIES:
        scalars |= {f"loss/{key}", f"balance/{key}", f"val/{key}", f"val_ratio/{key}"}
    assert scalars <= set(tags["scalars"])
    assert set(tags["images"]) == {"expert_load", *(f"reconstruction/{key}" for key in MODALITIES)}
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 61))
    assert [event.step for event in events.Images("expert_load")] == [40, 60]


def test_pictures_and_checkpoints_lie_where_they_should(finished):
    names = {path.name for path in (finished / "pictures").iterdir()}
    expected = {f"step-{step:08d}-{name}.png" for step in (40, 60) for name in (*MODALITIES, "expert-load")}
    assert names == expected
    assert [path.name for path in step_folders(finished)] == ["step-00000060", "step-00000030"]
    assert from_dict(RunConfig, load_yaml(finished / "run.yaml")).output == finished
    reader = open_checkpoint(finished)
    assert set(reader.config["inputs"]) == set(MODALITIES)
    usage = Usage.from_dict(reader.document("usage.json"))
    assert sum(usage.collaborative(0, "opt")) == pytest.approx(1.0, abs=0.01)


def test_a_finished_run_says_so(finished, train, capsys):
    before = weights_of(finished)
    train(
        finished,
        steps=60,
        options="--every.evaluation 20 --every.pictures 40 --every.checkpoint 30 --optimiser.lr 2e-3",
    )
    assert "has all its 60 steps: nothing to do" in " ".join(capsys.readouterr().out.split())
    assert weights_of(finished) == before
    assert len(rows_of(finished)) == 63


def test_the_command_line_evaluates_the_checkpoint(finished, shards, capsys):
    options = {"tiles": 512, "masks": 1}
    evaluate(EvaluateConfig(checkpoint=finished, shards=(shards,), json=True, **options))
    found = json.loads(capsys.readouterr().out)
    rows = read_rows(finished / "metrics.jsonl")
    for key in MODALITIES:
        assert found[key]["model"] == pytest.approx(series(rows, f"val/{key}")[1][-1], rel=1e-5)
        assert found[key]["num_tiles"] == 7
    evaluate(EvaluateConfig(checkpoint=finished, shards=(shards,), **options))
    assert "visible mean" in capsys.readouterr().out


def test_a_run_that_is_stopped_and_continued_equals_one_that_was_not(train, tmp_path, capsys):
    train(tmp_path / "whole", steps=8)
    train(tmp_path / "parts", SignalAfter(3), steps=8)
    assert "saved after step 3; the same command continues" in " ".join(capsys.readouterr().out.split())
    train(tmp_path / "parts", SignalAfter(6), steps=8)
    train(tmp_path / "parts", steps=8)
    assert "after step 6 of 8" in " ".join(capsys.readouterr().out.split())
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")


def test_recomputed_activations_change_nothing(train, tmp_path):
    for what in ("nothing", "experts", "blocks"):
        train(tmp_path / what, steps=3, options=f"--parallel.recompute {what}")
    kept = weights_of(tmp_path / "nothing")
    assert weights_of(tmp_path / "experts") == kept
    assert weights_of(tmp_path / "blocks") == kept


def test_bf16_follows_fp32(train, tmp_path):
    train(tmp_path / "fp32", steps=6)
    train(tmp_path / "bf16", steps=6, options="--parallel.dtype bf16")
    for one, other in zip(rows_of(tmp_path / "fp32")[:6], rows_of(tmp_path / "bf16")[:6], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)


def test_numbers_that_go_wrong_stop_the_run_unsaved_and_name_the_samples(train, tmp_path):
    options = "--optimiser.lr 1e30 --optimiser.clip 0 --every.checkpoint 4"
    with pytest.raises(TrainingError, match=r"step \d: loss.* not finite.*on rank 0, micro-batch 0: shards/"):
        train(tmp_path / "run", steps=8, options=options)
    assert not step_folders(tmp_path / "run")


class InTheWay(Callback):
    """Takes the place of the checkpoints, so that none can be written."""

    def __init__(self, step: int) -> None:
        self._step = step

    def before_step(self, trainer: Trainer) -> None:
        if trainer.step + 1 == self._step:
            trainer.config.output.mkdir(exist_ok=True)
            (trainer.config.output / "checkpoints").write_text("")


def test_a_save_beside_training_that_fails_stops_the_run_at_the_next_step(train, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written"):
        train(tmp_path / "run", InTheWay(2), steps=1_000, options="--save-beside --every.checkpoint 2")
    assert len(rows_of(tmp_path / "run")) < 50


def test_a_run_that_is_saved_beside_training_is_the_same(train, tmp_path):
    train(tmp_path / "waiting", steps=5, options="--every.checkpoint 1")
    train(tmp_path / "beside", steps=5, options="--every.checkpoint 1 --save-beside --keep-last 1 --keep-every 2")
    assert rows_of(tmp_path / "beside") == rows_of(tmp_path / "waiting")
    assert weights_of(tmp_path / "beside") == weights_of(tmp_path / "waiting")
    assert [path.name[-1] for path in step_folders(tmp_path / "beside")] == ["5", "4", "2"]


def test_a_folder_of_another_run_is_refused(finished, train):
    with pytest.raises(CheckpointError, match=r"model\.top_k is 1 in the checkpoint, 2 in this run"):
        train(finished, steps=70, options="--model.top-k 2")


def test_what_was_compressed_trains_on(finished, world, shards, tmp_path):
    prune.run(prune.PruneConfig(finished, tmp_path / "dense", mode="ka", modality=("opt",), keep_decoders=True))
    prune.run(prune.PruneConfig(finished, tmp_path / "bare", mode="ka", modality=("opt",)))
    words = small_run(shards, tmp_path / "run", steps=30, options="--optimiser.lr 2e-3")
    with pytest.raises(ConfigError, match="no decoders"):
        parse([*words, "--start", str(tmp_path / "bare")], {})
    config = parse([*words, "--start", str(tmp_path / "dense")], {})
    made = open_checkpoint(tmp_path / "dense")
    with closing(build_trainer(config, world)) as trainer:
        for entry in canonical_entries(trainer.model):
            assert torch.equal(entry.tensor, made.tensor(entry.name)), entry.name
        before = _held_out(trainer.model, shards)
        trainer.fit()
        assert _held_out(trainer.model, shards) < before
    trained = open_checkpoint(tmp_path / "run")
    assert trained.manifest.step == 30
    assert set(made.names) == set(trained.names)
    assert from_dict(RingMoEConfig, trained.config["model"]) == config.model == config.model.dense()


def _held_out(model: RingMoE, shards: Path) -> float:
    """Masked error on tiles that were kept out of training, under masks that are always the same."""
    with closing(whole_tiles_loader(DataConfig(shards=(shards,)), model.config)) as loader:
        return judge(model, loader, device=torch.device("cpu"), masks=2, batch=8, tiles=16)["opt"].model
