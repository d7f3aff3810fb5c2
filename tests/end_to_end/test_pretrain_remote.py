"""A run whose shards lie behind a server that fails on purpose is the run on the folder itself, bit for bit."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ringmoe.cli.evaluate import EvaluateConfig
from ringmoe.cli.evaluate import run as evaluate
from ringmoe.cli.main import VERBS
from ringmoe.cli.prune import PruneConfig
from ringmoe.cli.prune import run as prune
from ringmoe.data.storage import RemoteConfig
from ringmoe.distributed.launch import start, stop
from ringmoe.errors import ShardError
from ringmoe.testing.http_server import FolderServer, seeded_faults
from ringmoe.train.build import build_trainer
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.command import parse
from ringmoe.train.trainer import Trainer
from tests.fixtures.small_run import rows_of, small_run, weights_of

STEPS = 4


@pytest.fixture(scope="module")
def train() -> Callable[..., None]:
    """Runs the command in this process."""
    world = start()

    def run(shards: str, output: Path, *added: Callback, options: str = "") -> None:
        config = parse(small_run(shards, output, steps=STEPS, options=options), {})
        with closing(build_trainer(config, world)) as trainer:
            trainer.callbacks = [*trainer.callbacks, *added]
            trainer.fit()

    yield run
    stop()


class Stop(Callback):
    """Ends the run after a step, as an error would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def after_step(self, trainer: Trainer) -> None:
        if trainer.step == self._step:
            raise KeyboardInterrupt


def _reads(rows: list[dict[str, float]], name: str) -> int:
    return round(sum(row.get(f"remote/{name}", 0.0) for row in rows))


@pytest.mark.slow
def test_a_run_over_a_failing_server_equals_one_on_the_folder(train, shards, tmp_path, capsys):
    train(shards, tmp_path / "near")
    remote = f"--data.remote.timeout 0.4 --data.remote.attempts 12 --data.remote.cache {tmp_path}/cache"
    with FolderServer(shards, seeded_faults(2, 0.2)) as server:
        with pytest.raises(KeyboardInterrupt):
            train(server.url, tmp_path / "far", Stop(3), options=f"--every.checkpoint 2 {remote}")
        train(server.url, tmp_path / "far", options=f"--every.checkpoint 2 {remote}")
        printed = " ".join(capsys.readouterr().out.split())
        assert "continuing" in printed
        assert f"read from {server.url}, all ranks: " in printed
        assert re.search(r"had to be repeated \([\d,]+ x ", printed)

        rows = rows_of(tmp_path / "far")
        assert _reads(rows, "requests") > _reads(rows, "repeated") > 0
        assert _reads(rows, "cache_hits") > 0
        plain = [{name: value for name, value in row.items() if not name.startswith("remote/")} for row in rows]
        assert plain == rows_of(tmp_path / "near")
        assert weights_of(tmp_path / "far") == weights_of(tmp_path / "near")
        _compare_evaluation_and_calibration(tmp_path, shards, server.url, capsys)


def _compare_evaluation_and_calibration(folder: Path, near: Path, far: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one checkpoint on the tiles of both places."""
    found = {}
    for place in (str(near), far):
        options = {"shards": (place,), "remote": RemoteConfig(timeout=0.4, attempts=12)}
        capsys.readouterr()
        evaluate(EvaluateConfig(checkpoint=folder / "near", json=True, tiles=4, masks=1, **options))
        plan = folder / "plan.json"
        config = PruneConfig(
            checkpoint=folder / "near",
            mode="ep",
            modality=("opt",),
            calibration_tiles=8,
            dry_run=True,
            plan=plan,
            **options,
        )
        json_text = capsys.readouterr().out
        prune(config)
        values = json.loads(plan.read_text())
        assert values.pop("usage").endswith(place)
        found[place] = json.loads(json_text), values
        assert (f"{place}: " in capsys.readouterr().out.replace("\n", "")) == (place == far)
    assert found[str(near)] == found[far]


def test_folders_elsewhere_are_listed_and_verified(shards, capsys):
    with FolderServer(shards, seeded_faults(5, 0.2)) as server:
        VERBS["shards list"].run("shards list", [server.url])
        assert "sar_l1" in capsys.readouterr().out
        arguments = [server.url, "--timeout", "0.4", "--attempts", "12"]
        server.plan = lambda path, asked, attempt: "503" if attempt == 0 else ""
        VERBS["shards verify"].run("shards verify", arguments)
        printed = " ".join(capsys.readouterr().out.split())
        assert f"{server.url}: all " in printed
        assert "x HTTP 503)" in printed
        server.plan = lambda path, asked, attempt: "flip" if path.endswith("opt/train-000000.tar") else ""
        with pytest.raises(ShardError, match=r"is damaged, 1 faults:\s+http://.*tar has another checksum"):
            VERBS["shards verify"].run("shards verify", arguments)
