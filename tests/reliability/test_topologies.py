"""A run that was saved at any world, expert-parallel size and ZeRO stage goes on at any other: all 144 ways.

Every run has the same global batch of 16 images, cut into micro-batches of four. It reads shards of which some tiles
are damaged, so that the books of what was read travel along. Ranks stay alive for all topologies of their world.
"""

import io
import itertools
import os
import shutil
import signal
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ringmoe.checkpoint.runs import open_checkpoint, step_folder
from ringmoe.checkpoint.state import MOMENTS
from ringmoe.distributed.launch import start
from ringmoe.naming import canonical_entries
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.build import build_trainer
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.callbacks.checkpoint import Checkpoint
from ringmoe.train.callbacks.expert_load import ExpertLoad
from ringmoe.train.callbacks.metrics_file import MetricsFile
from ringmoe.train.callbacks.nan_guard import NanGuard
from ringmoe.train.callbacks.quarantine import Quarantine
from ringmoe.train.command import parse
from ringmoe.train.trainer import Trainer
from tests.fixtures.shards import build_shards, spoil_tiles
from tests.fixtures.small_run import rows_of, small_run

pytestmark = [pytest.mark.distributed, pytest.mark.reliability, pytest.mark.xdist_group("topologies")]

SAVED, END = 2, 4  # steps
KEPT = (Quarantine, NanGuard, ExpertLoad, Checkpoint, MetricsFile)


class Topology(NamedTuple):
    world: int
    expert_parallel: int
    stage: int

    def __str__(self) -> str:
        return f"world {self.world}, EP {self.expert_parallel}, ZeRO-{self.stage}"


TOPOLOGIES = [
    Topology(world, expert_parallel, stage)
    for world, expert_parallel, stage in itertools.product((1, 2, 4), (1, 2, 4), (1, 2))
    if world % expert_parallel == 0
]


Micro = dict[str, list[str]]  # names of images by modality


class Ledger(Callback):
    """Notes what this rank reads and whether it took up what was saved; asks to stop when it has seen enough."""

    def __init__(self) -> None:
        self.steps: list[list[Micro]] = []
        self.differing: list[str] = []

    def start(self, trainer: Trainer) -> None:
        if not trainer.step:
            return
        reader = open_checkpoint(trainer.config.output)
        for name, state in trainer.engine.state_of(canonical_entries(trainer.model)):
            saved = {kind: reader.tensor(f"{name}.{kind}") for kind in MOMENTS} | {"weight": reader.tensor(name)}
            self.differing += [f"{name} {kind}" for kind in saved if not torch.equal(saved[kind], state[kind])]

    def after_step(self, trainer: Trainer) -> None:
        micros = trainer.recent[-1]
        self.steps.append([{key: list(ids) for key, ids in micro.sample_ids.items()} for micro in micros])
        if trainer.step == END:
            os.kill(os.getpid(), signal.SIGTERM)


def _train(topology: Topology, shards: Path, output: Path) -> tuple[list[list[Micro]], list[str]]:
    """Trains from where the folder is to the last step; what this rank read, and what it took up wrongly."""
    options = (
        f"--data.micro-batch 4 --batch.accumulation {4 // topology.world} --parallel.engine zero{topology.stage} "
        f"--parallel.expert-parallel {topology.expert_parallel} --every.checkpoint {SAVED} --every.log 1000 "
        "--data.bad-tiles 0.5 --optimiser.clip 0.5"
    )
    # the schedule is that of a longer run, which is asked to stop
    config = parse(small_run(shards, output, steps=20, options=options), dict(os.environ))
    ledger = Ledger()
    with closing(build_trainer(config, start())) as trainer:
        trainer.callbacks = [ledger, *(callback for callback in trainer.callbacks if isinstance(callback, KEPT))]
        trainer.fit()
    return ledger.steps, ledger.differing


def _train_all(tasks: list[tuple[Topology, Path]], shards: Path) -> list[Any]:
    """Ranks that stay alive take one topology of their world after the other."""
    with redirect_stdout(io.StringIO()):
        return [_train(topology, shards, output) for topology, output in tasks]


def _run_all(tasks: list[tuple[Topology, Path]], shards: Path) -> dict[Path, "Run"]:
    runs = {}
    for world in (1, 2, 4):
        mine = [task for task in tasks if task[0].world == world]
        ranks = run_ranks(_train_all, world, mine, shards, timeout=3000, init=False)
        for (_, output), *answers in zip(mine, *ranks, strict=True):
            steps = zip(*(steps for steps, _ in answers), strict=True)
            # micro-batch m of rank r is number m * world + r of its step
            read = [[micro for micros in zip(*by_rank, strict=True) for micro in micros] for by_rank in steps]
            runs[output] = Run(read, [name for _, differing in answers for name in differing], output)
    return runs


class Run(NamedTuple):
    read: list[list[Micro]]  # by step, in the order of the stream
    differing: list[str]
    output: Path

    def rows(self) -> list[dict[str, float]]:
        """What was logged that no topology may change."""
        named = ("loss", "balance/", "gradient_norm", "lr", "tiles_", "substituted/", "skipped")
        return [{name: row[name] for name in row if name.startswith(named)} for row in rows_of(self.output)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments after the last step."""
        reader = open_checkpoint(self.output)
        assert reader.manifest.step == END
        return {name: reader.tensor(name) for name in reader.manifest.tensors}


@pytest.fixture(scope="module")
def matrix(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[Topology, Run], dict[tuple[Topology, Topology], Run]]:
    """A run of each topology that nothing interrupts, and each taken up from its middle by each."""
    folder = tmp_path_factory.mktemp("matrix")
    shards = build_shards(folder, tile=32, side=96)
    spoil_tiles(shards, "opt", every=3)
    outputs = {topology: folder / f"from-{number}" for number, topology in enumerate(TOPOLOGIES)}
    whole = _run_all(list(outputs.items()), shards)
    pairs = {}
    for before, after in itertools.product(TOPOLOGIES, TOPOLOGIES):
        output = outputs[before].with_name(f"{outputs[before].name}-to-{TOPOLOGIES.index(after)}")
        shutil.copytree(outputs[before], output, symlinks=True)
        shutil.rmtree(step_folder(output, END))
        pairs[before, after] = output
    resumed = _run_all([(after, output) for (_, after), output in pairs.items()], shards)
    return (
        {topology: whole[output] for topology, output in outputs.items()},
        {pair: resumed[output] for pair, output in pairs.items()},
    )


@pytest.mark.timeout(9000)
@pytest.mark.parametrize("before", TOPOLOGIES, ids=str)
def test_it_goes_on_at_every_topology(matrix, before):
    whole, resumed = matrix
    run = whole[before]
    weights = run.tensors()
    book = (run.output / "quarantine.json").read_text()
    assert run.rows()[-1]["tiles_quarantined/opt"] > 0
    for after in TOPOLOGIES:
        other = resumed[before, after]
        assert not other.differing, f"{after} took up other weights or moments than were saved"
        assert other.read == run.read[SAVED:], f"{after} read other samples, or in another order"
        assert (other.output / "quarantine.json").read_text() == book
        found = other.tensors()
        assert found.keys() == weights.keys()
        if after == before:
            assert rows_of(other.output) == rows_of(run.output)
            assert all(torch.equal(found[name], weights[name]) for name in weights)
            continue
        for row, expected in zip(other.rows(), run.rows(), strict=True):
            assert row == pytest.approx(expected, rel=1e-5, abs=1e-6), after
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-6, msg=f"{after}: {name}")


def test_all_topologies_train_the_same(matrix):
    whole, _ = matrix
    first = whole[TOPOLOGIES[0]]
    for topology, run in whole.items():
        assert run.read == first.read, topology
        for row, expected in zip(run.rows(), first.rows(), strict=True):
            assert row == pytest.approx(expected, rel=1e-5, abs=1e-6), topology


def test_there_are_twelve():
    assert len(TOPOLOGIES) == len(set(TOPOLOGIES)) == 12
