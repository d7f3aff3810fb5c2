"""Tiles that are not what was written, met while a run trains: the run goes on, names them, and stops at too many."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ringmoe.data.manifest import Manifest
from ringmoe.distributed.launch import World
from ringmoe.errors import ShardError
from ringmoe.train.callbacks.base import Callback
from tests.fixtures import training
from tests.fixtures.shards import spoil_tiles
from tests.fixtures.small_run import rows_of, small_run, weights_of
from tests.fixtures.training import SignalAfter

STEPS = 8
LEAN = "--parallel.engine lean"


@pytest.fixture(scope="module")
def train(world: World) -> Callable[..., str]:
    """Runs the command with some options and gives what it says."""

    def run(shards: Path, output: Path, *added: Callback, options: str = "--data.bad-tiles 0.4") -> str:
        return training.train(small_run(shards, output, steps=STEPS, options=f"{LEAN} {options}"), world, *added)

    return run


@pytest.fixture(scope="module")
def damaged(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shards with a byte changed in every third training tile of one modality, and one held-out one."""
    root = Path(shutil.copytree(shards, tmp_path_factory.mktemp("damaged") / shards.name))
    spoil_tiles(root, "opt", every=3)
    spoil_tiles(root, "opt", every=100, split="val")
    return root


@pytest.fixture(scope="module")
def whole(damaged: Path, train: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing interrupts, and what it said."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train(damaged, run)


def test_training_goes_on_and_the_books_add_up(damaged, whole):
    run, said = whole
    written = {
        key: sum(shard.samples for shard in entry.splits["train"].shards)
        for key, entry in Manifest.open(damaged).modalities.items()
    }
    book = json.loads((run / "quarantine.json").read_text())
    rows = [row for row in rows_of(run) if "loss" in row]
    assert book.keys() == {"opt"}
    assert 0 < len(book["opt"]) == rows[-1]["tiles_quarantined/opt"] <= sum(row["substituted/opt"] for row in rows)
    for key, num_written in written.items():
        assert all(row[f"tiles_read/{key}"] + row[f"tiles_quarantined/{key}"] <= num_written for row in rows)
        met = min(2 * STEPS, num_written)
        num_bad = len(book.get(key, ()))
        assert rows[-1][f"tiles_read/{key}"] == met - num_bad
        quarantined = f"{num_bad} quarantined + " if num_bad else ""
        assert f"{key} {num_written} = {met - num_bad} read + {quarantined}{num_written - met} not come to" in said
    name, entry = next(iter(book["opt"].items()))
    assert name.startswith("shards/opt/train-000000.tar:")
    assert "wrong checksum" in entry["reason"]
    assert rows[entry["step"] - 1]["substituted/opt"] >= 1
    assert f"{name}: its pixels are not those that were written (wrong checksum" in said
    assert "1 of 7 held-out tiles of opt are not what was written and were left out" in said


def test_a_run_that_is_continued_keeps_the_same_books(damaged, whole, train, tmp_path):
    run, parts = whole[0], tmp_path / "parts"
    train(damaged, parts, SignalAfter(5))
    train(damaged, parts)
    assert rows_of(parts) == rows_of(run)
    assert weights_of(parts) == weights_of(run)
    assert json.loads((parts / "quarantine.json").read_text()) == json.loads((run / "quarantine.json").read_text())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--data.bad-tiles 0.01", r"\d of the \d+ tiles of opt are not what was written.*quarantine\.json names them"),
        ("--data.bad-tiles 0", r"opt/train-000000\.tar:.*wrong checksum"),
    ],
)
def test_too_many_stop_it(damaged, train, tmp_path, options, reason):
    with pytest.raises(ShardError, match=reason):
        train(damaged, tmp_path / "run", options=options)
    assert (tmp_path / "run" / "quarantine.json").exists() == ("0.01" in options)
