"""Saving beside training: what is saved is the run as it was, and what goes wrong is said where it can be raised."""

import logging
import time
from pathlib import Path

import pytest
import torch

from ringmoe import faults
from ringmoe.checkpoint import load, runs, store
from ringmoe.checkpoint.saver import Saver
from ringmoe.errors import CheckpointError
from tests.fixtures.child import exit_code_of, limit_files


def save(saver, run, config):
    saver.save(run, run.state(), config=config, documents={"usage.json": {"tokens": run.step}})


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_training_goes_on_beside_the_writing_and_does_not_change_what_is_written(
    new_run, config, tmp_path, monkeypatch
):
    halted = tmp_path / "halted"
    monkeypatch.setattr(store, "point", faults._Halt(f"0,1,{halted},write weights-00000.safetensors"))
    run, saver = new_run(), Saver(tmp_path, runs.Kept(), beside=True)
    run.train(2)
    saved = [parameter.detach().clone() for parameter in run.model.parameters()]
    save(saver, run, config)
    wait_for(halted)
    expected = run.train(3)
    assert not runs.step_folders(tmp_path), "it appears only when it is complete"
    halted.unlink()
    saver.wait()
    again = new_run(seed=1)
    state = load.load_latest(tmp_path, again, config=config, seed=5, data_fingerprint="abc")
    assert state.step == 2
    assert all(map(torch.equal, saved, again.model.parameters()))
    assert again.train(3) == expected


def test_the_next_save_waits_for_the_one_before(new_run, config, tmp_path):
    run, saver = new_run(), Saver(tmp_path, runs.Kept(last=2), beside=True)
    for _ in range(4):
        run.train(1)
        save(saver, run, config)
    saver.close()
    assert [path.name for path in runs.step_folders(tmp_path)] == ["step-00000004", "step-00000003"]
    assert not saver.has_failed


def _fail_beside(run, folder, config):
    saver = Saver(folder, runs.Kept(), beside=True)
    run.train(1)
    limit_files(500)
    save(saver, run, config)
    deadline = time.monotonic() + 60
    while not saver.has_failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match=r"cannot be written.*Nothing that was complete has been touched"):
        save(saver, run, config)
    assert not saver.has_failed, "an error is raised once"


def test_a_full_disk_is_told_at_once_raised_by_the_next_save_and_leaves_the_older_one(new_run, config, tmp_path):
    run = new_run()
    run.train(1)
    saver = Saver(tmp_path, runs.Kept())
    save(saver, run, config)
    assert exit_code_of(_fail_beside, run, tmp_path, config) == 0
    assert sorted(path.name for path in runs.folder_of(tmp_path).iterdir()) == ["latest", "step-00000001"]


def test_closing_after_an_error_elsewhere_only_says_what_went_wrong(new_run, config, tmp_path, caplog):
    run, saver = new_run(), Saver(tmp_path, runs.Kept(), beside=True)
    run.train(1)
    runs.folder_of(tmp_path).write_text("in the way")
    save(saver, run, config)
    with caplog.at_level(logging.WARNING):
        saver.close()
    assert "the last save failed" in caplog.text
