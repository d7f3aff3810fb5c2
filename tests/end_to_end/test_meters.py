"""What a run says of its own speed: it adds up, it points at what is slow, and it costs nothing to speak of."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ringmoe.clock import Clock
from ringmoe.distributed.launch import World, start
from ringmoe.moe.imbalance import imbalance
from ringmoe.report.curves import read_rows
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.build import build_trainer
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.callbacks.memory import Memory
from ringmoe.train.callbacks.speed import PARTS, Speed
from ringmoe.train.command import parse
from ringmoe.train.trainer import Trainer
from tests.fixtures.shards import build_shards
from tests.fixtures.small_run import small_run

STEPS = 6


@pytest.fixture(scope="module")
def tiles_of_96(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tmp_path_factory.mktemp("tiles"), tile=96, side=256)


class Stopwatch:
    """CPU time of the calls that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began
                self.calls += 1

        return timed


class Outside(Callback):
    """Wall and CPU time of the steps, taken from outside."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def before_step(self, trainer: Trainer) -> None:
        if not trainer.recent:
            self._began = time.perf_counter(), time.thread_time()

    def before_flush(self, trainer: Trainer) -> None:
        wall, cpu = self._began
        self.wall += time.perf_counter() - wall
        self.cpu += time.thread_time() - cpu


def _tiny(shards: Path, output: Path) -> list[str]:
    options = "--preset tiny --data.micro-batch 16 --schedule.warmup 2 --every.log 2 --evaluation.tiles 1"
    return [*options.split(), "--schedule.steps", str(STEPS), "--data.shards", str(shards), "--output", str(output)]


@pytest.fixture(scope="module")
def tiny(world: World, tiles_of_96: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Outside, float]:
    """A run of ``tiny``, what it took from outside, and the CPU time of its meters."""
    output = tmp_path_factory.mktemp("run") / "run"
    outside, meters, marks = Outside(), Stopwatch(), Stopwatch()
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(build_trainer(parse(_tiny(tiles_of_96, output), {}), world)) as trainer,
    ):
        for owner, name in ((Speed, "before_step"), (Speed, "before_flush"), (Memory, "before_flush")):
            patch.setattr(owner, name, meters.wrap(getattr(owner, name)))
        patch.setattr("ringmoe.train.callbacks.expert_load.imbalance", meters.wrap(imbalance))
        patch.setattr(Clock, "turn", marks.wrap(Clock.turn))
        trainer.callbacks = [*trainer.callbacks, outside]
        trainer.fit()
    assert marks.calls == 2 * STEPS * 5  # data twice, forward, backward, optimiser; each begins and ends
    return trainer, outside, meters.seconds + marks.calls // 2 * _cost_of_a_part()


def _cost_of_a_part() -> float:
    """CPU seconds of telling the clock of one part."""
    clock = Clock()
    clock.start()
    began = time.thread_time()
    for _ in range(1000):
        with clock.during("forward"):
            pass
    return (time.thread_time() - began) / 1000


def _steps_of(output: Path) -> list[dict[str, float]]:
    return [row for row in read_rows(output / "metrics.jsonl") if "loss" in row]


def test_the_parts_of_a_step_add_up_to_it(tiny):
    trainer, outside, _ = tiny
    rows = _steps_of(trainer.config.output)
    for row in rows:
        assert sum(row[f"seconds/{part}"] for part in PARTS) == pytest.approx(row["seconds_per_step"])
        assert row["seconds/exchange"] == 0
        assert row["seconds/rest"] < 0.25 * row["seconds_per_step"]
        assert row["seconds/backward"] > row["seconds/optimiser"] > 0
    assert sum(row["seconds_per_step"] for row in rows) == pytest.approx(outside.wall, rel=0.05)


def test_utilisation_is_the_models_operations_over_the_peak(tiny):
    trainer, _, _ = tiny
    model, rows = trainer.config.model, _steps_of(trainer.config.output)
    for row in rows:
        flops = 3 * sum(4 * model.flops_per_image(key) for key in model.modalities)
        assert row["mfu"] == pytest.approx(flops / row["seconds_per_step"] / (1e12 * row["peak_tflops"]))
        assert 0 < row["mfu"] < 1
        assert row["images_per_second"] == pytest.approx(16 / row["seconds_per_step"])
        assert row["tokens_per_second"] == pytest.approx(16 * 12 * 12 / row["seconds_per_step"])


def test_load_and_memory_are_told(tiny):
    trainer, _, _ = tiny
    for row in _steps_of(trainer.config.output):
        for family in ("specialised", "collaborative"):
            assert 1 <= row[f"imbalance/{family}"] <= row[f"imbalance_worst/{family}"] <= 4
        assert "imbalance/ranks" not in row
        assert 0.1 < row["memory_gib/host"] < 16


def test_meters_cost_less_than_a_hundredth_of_a_step(tiny):
    _, outside, meters = tiny
    assert meters < 0.01 * outside.cpu, f"{meters / outside.cpu:.2%}"


def test_a_slow_loader_shows_as_waiting_for_data(world, shards, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    with closing(build_trainer(parse(small_run(shards, output, steps=4), {}), world)) as trainer:
        batch = trainer.loader.batch

        def slow(step: int, micro: int) -> Any:
            time.sleep(0.5)
            return batch(step, micro)

        monkeypatch.setattr(trainer.loader, "batch", slow)
        trainer.fit()
    rows = _steps_of(output)
    for row in rows:
        assert row["data_wait"] == pytest.approx(row["seconds/data"] / row["seconds_per_step"])
    slowest = max(rows, key=lambda row: row["seconds/data"])  # later batches come ahead, where steps are slow too
    assert 0.15 < slowest["seconds/data"] < slowest["seconds_per_step"]
    assert f"data {slowest['data_wait']:.0%}" in " ".join(capsys.readouterr().out.split())


class LateRank(Callback):
    """Holds one rank back before every step."""

    def before_step(self, trainer: Trainer) -> None:
        if trainer.world.rank == 1:
            time.sleep(0.2)


def _train_with_a_late_rank(shards: str, output: str) -> None:
    options = "--parallel.expert-parallel 2 --every.log 1"
    config = parse(small_run(Path(shards), Path(output), steps=3, options=options), os.environ)
    with closing(build_trainer(config, start())) as trainer:
        trainer.callbacks = [*trainer.callbacks, LateRank()]
        trainer.fit()


@pytest.mark.distributed
def test_waiting_for_a_late_rank_is_exchange(shards, tmp_path):
    run_ranks(_train_with_a_late_rank, 2, str(shards), str(tmp_path / "run"), init=False)
    rows = _steps_of(tmp_path / "run")
    assert max(row["seconds/exchange"] for row in rows) > 0.09  # one of two ranks waits for 0.2 s
    for row in rows:
        assert sum(row[f"seconds/{part}"] for part in PARTS) == pytest.approx(row["seconds_per_step"])
        assert 1 <= row["imbalance/ranks"] <= row["imbalance_worst/ranks"] <= 2
