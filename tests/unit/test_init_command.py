"""``ringmoe init``: a checkpoint of first weights, whole or not at all."""

from pathlib import Path

import pytest
import torch

from ringmoe.checkpoint.pretrained import load_model
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.cli import init
from ringmoe.cli.init import InitConfig, run
from ringmoe.errors import CheckpointError
from ringmoe.layers.init import initialise
from ringmoe.models import build_model, config_from, preset
from ringmoe.naming import canonical_entries


def test_its_weights_are_those_that_a_run_begins_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(InitConfig(tmp_path / "model", seed=3))
    model = load_model(tmp_path / "model", lambda config: build_model(config_from(config)))
    expected = build_model(preset("tiny"))
    initialise(expected, 3)
    for ours, theirs in zip(canonical_entries(model), canonical_entries(expected), strict=True):
        assert torch.equal(ours.tensor, theirs.tensor.bfloat16().float()), ours.name
    reader = CheckpointReader(tmp_path / "model")
    reader.verify()
    assert {entry.dtype for entry in reader.manifest.tensors.values()} == {"bfloat16"}
    num_params = preset("tiny").num_params()
    assert f"{num_params:,} parameters in bf16" in capsys.readouterr().out


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ringmoe.checkpoint.disk.free_bytes", lambda folder: 1000)
    with pytest.raises(CheckpointError, match=r"are needed but 1\.0 kB are free"):
        run(InitConfig(tmp_path / "model"))
    assert not any(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> object:
        yield "embed.opt.weight", torch.zeros(2)
        raise KeyboardInterrupt

    monkeypatch.setattr(init, "first_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(InitConfig(tmp_path / "model"))
    assert not any(tmp_path.iterdir())


def test_what_exists_is_left_alone(tmp_path: Path):
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        run(InitConfig(tmp_path / "model"))
