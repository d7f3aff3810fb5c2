"""A loss that spikes: the run says so, goes back where it may, passes over the data, and keeps account of them."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.distributed.launch import World
from ringmoe.errors import TrainingError
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.command import parse
from ringmoe.train.loaders import train_loader
from ringmoe.train.trainer import Trainer
from tests.fixtures import training
from tests.fixtures.launchers import variables
from tests.fixtures.shards import build_shards, change_tiles
from tests.fixtures.small_run import rows_of, small_run, weights_of
from tests.reliability.jobs import Job

STEPS = 80
ABSURD = (71, 72, 73)  # steps of data whose tiles of one modality have the highest power that there is, everywhere
SETTINGS = "--data.micro-batch 4 --every.log 5 --every.checkpoint 25 --keep-last 2"
ROLL_BACK = f"{SETTINGS} --numbers.roll-backs 1"
# the spike is seen at step 75, whose checkpoint is not written
SPIKE, BACK = "LOSS SPIKE: since step 71 the loss is above", "ROLLED BACK from step 75 to step 50, 1 of at most 1 times"


@pytest.fixture(scope="module")
def train(world: World) -> Callable[..., str]:
    def run(shards: Path, output: Path, *added: Callback, options: str) -> str:
        arguments = small_run(shards, output, steps=STEPS, options=f"--parallel.engine lean {options}")
        return training.train(arguments, world, *added)

    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with more tiles than any of these runs reads."""
    return build_shards(tmp_path_factory.mktemp("sound"), tile=32, side=352)


def absurd(shards: Path, folder: Path, steps: tuple[int, ...], *, ranks: int) -> Path:
    """A copy of the shards with absurd, finite values in all tiles of one modality that some steps read."""
    config = parse(small_run(shards, folder, steps=STEPS, options=SETTINGS), {})
    with closing(train_loader(config, rank=0, world=ranks)) as loader:
        names = [name for step in steps for name in loader.names("sar_l1", loader.turns("sar_l1", step_of(step))[1])]
    root = Path(shutil.copytree(shards, folder / "shards"))
    change_tiles(root, "sar_l1", names, lambda values: 1e3 * values)
    return root


def step_of(number: int) -> range:
    return range(number - 1, number)


class Read(Callback):
    """Notes the images of one modality that each step has read, those that do not count among them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def before_flush(self, trainer: Trainer) -> None:
        self.names += [name for micros in trainer.recent for micro in micros for name in micro.sample_ids["opt"]]


def test_a_run_goes_back_passes_over_the_data_and_keeps_account(sound, train, tmp_path):
    root, run, read = absurd(sound, tmp_path, ABSURD, ranks=1), tmp_path / "run", Read()
    said = train(root, run, read, options=ROLL_BACK)
    assert f"{SPIKE}" in said
    assert "not saved after step 75: its loss spikes" in said
    assert f"{BACK}: steps 51 to 75 of the data are passed over" in said
    rows = [row for row in rows_of(run) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert not any(row["loss_spike"] for row in rows)
    assert [row.get("roll_backs", 0) for row in rows] == [0] * 50 + [1] * 30
    # every tile once, in the order of the data; those of the steps in between were read in vain
    (passed,) = json.loads((run / "passed_over.json").read_text())
    assert passed["steps of data"] == [51, 75]
    assert passed["images"]["opt"] == read.names[50:75]
    assert len(read.names) == len(set(read.names)) == STEPS + 25
    assert (rows[-1]["tiles_read/opt"], rows[-1]["tiles_passed_over/opt"]) == (80, 25)
    assert "80 read + 25 passed over + " in said
    assert open_checkpoint(run).trainer["data"]["step"] == STEPS + 25


def test_it_stops_where_it_has_gone_back_often_enough(sound, train, tmp_path):
    root = absurd(sound, tmp_path, (*ABSURD, 95, 96, 97), ranks=1)
    with pytest.raises(TrainingError, match=r"spikes since step 70, and the run has gone back 1 times already"):
        train(root, tmp_path / "run", options=ROLL_BACK)


def test_it_stops_where_there_is_nothing_to_go_back_to(sound, train, tmp_path):
    root = absurd(sound, tmp_path, ABSURD, ranks=1)
    with pytest.raises(TrainingError, match=r"since step 71, and no checkpoint is older"):
        train(root, tmp_path / "run", options=f"{ROLL_BACK} --every.checkpoint 1000")


def test_it_only_tells_of_it_unless_it_is_asked_to_go_back(sound, train, tmp_path):
    root = absurd(sound, tmp_path, ABSURD, ranks=1)
    said = train(root, tmp_path / "run", options=SETTINGS)
    assert SPIKE in said
    assert "the loss spike ended before step 74" in said
    assert "ROLLED BACK" not in said
    spikes = [row["step"] for row in rows_of(tmp_path / "run") if row.get("loss_spike")]
    assert spikes == [71, 72, 73]


def ended(job: Job, place: str = "", *, rank: int = 0) -> None:
    """Starts a job and waits until it has ended or stands at the place, however long that takes."""
    job.start(place, rank=rank)
    while job.goes_on():
        time.sleep(0.05)


@pytest.mark.distributed
@pytest.mark.timeout(1200)
def test_ranks_that_are_killed_behind_a_roll_back_go_on_bit_for_bit(sound, tmp_path, monkeypatch):
    for name, value in variables().items():  # which the process has that ranks are forked from
        monkeypatch.setenv(name, value)
    root = absurd(sound, tmp_path, ABSURD, ranks=2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = Job(root, tmp_path / "whole/run", ROLL_BACK, steps=STEPS)
    ended(whole)
    assert not any(whole.codes()), whole.printed
    assert BACK in whole.printed
    killed = Job(root, tmp_path / "killed/run", ROLL_BACK, steps=STEPS)
    ended(killed, "went back", rank=1)
    killed.wait_until_halted()
    killed.kill(killed.ranks(), signal.SIGKILL)
    killed.codes()
    killed.go_on()
    ended(killed)
    assert not any(killed.codes()), killed.printed
    assert "after step 50 of" in killed.printed
    assert BACK not in killed.printed, "it was kept that the run had gone back"
    assert rows_of(tmp_path / "killed/run") == rows_of(tmp_path / "whole/run")
    assert weights_of(tmp_path / "killed/run") == weights_of(tmp_path / "whole/run")
