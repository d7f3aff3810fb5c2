"""Saving and resuming a run in one process: bit for bit, whatever is damaged, interrupted or mistaken."""

import json
import logging
import os
import shutil
import signal
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ringmoe.checkpoint import load, runs, save
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.errors import CheckpointError
from tests.fixtures.child import exit_code_of, limit_files


@pytest.fixture
def save_run(tmp_path, config):
    return lambda run, **options: save.save_checkpoint(tmp_path, run, run.state(), config=config, **options)


@pytest.fixture
def resume(tmp_path, config):
    def call(run, **changes):
        return load.load_latest(tmp_path, run, **({"config": config, "seed": 5, "data_fingerprint": "abc"} | changes))

    return call


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in runs.folder_of(run_folder).iterdir())


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(new_run, save_run, resume):
    run = new_run()
    run.train(3)
    folder = save_run(run, max_file_bytes=300)
    assert len(list(folder.glob("weights-*"))) > 1
    expected = run.train(4)
    again = new_run(seed=1)
    state = resume(again)
    assert state == new_run.state(again)
    assert again.train(4) == expected
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))


def test_experts_are_saved_under_their_global_names(new_run, save_run):
    run = new_run()
    run.train(1)
    reader = CheckpointReader(save_run(run, documents={"usage.json": {"tokens": 3}}))
    assert "collaborative.3.w1" in reader.names
    assert torch.equal(reader.tensor("collaborative.3.w1"), run.model.experts.w1_EDF[1])
    assert reader.tensor("collaborative.3.w1.exp_avg_sq").shape == (4, 8)
    assert reader.document("usage.json") == {"tokens": 3}
    assert reader.manifest.topology == {"world": 1, "expert_parallel": 1}


def test_a_new_run_has_nothing_to_resume(new_run, resume):
    assert resume(new_run()) is None


def test_old_checkpoints_go_and_latest_names_the_newest(new_run, save_run, tmp_path):
    run = new_run()
    for _ in range(4):
        run.train(2)
        save_run(run, kept=runs.Kept(last=2))
    assert names(tmp_path) == ["latest", "step-00000006", "step-00000008"]
    assert (runs.folder_of(tmp_path) / "latest").read_text() == "step-00000008\n"


@pytest.mark.parametrize(
    "file", ["weights-00000.safetensors", "optimizer-00000.safetensors", "manifest.json", "trainer.json"]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    new_run, save_run, resume, tmp_path, caplog, file
):
    run = new_run()
    run.train(2)
    save_run(run)
    expected = run.train(2)
    damage(save_run(run) / file)
    with caplog.at_level(logging.WARNING):
        again = new_run(seed=1)
        assert resume(again).step == 2
    assert file in caplog.text
    assert "Going on from" in caplog.text
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000004.damaged"]
    assert again.train(2) == expected
    save_run(again, kept=runs.Kept(last=1))
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000004.damaged"]
    assert resume(new_run()).step == 4


def test_every_so_many_steps_one_stays_for_ever(new_run, save_run, tmp_path):
    run = new_run()
    for _ in range(7):
        run.train(1)
        save_run(run, kept=runs.Kept(last=2, every=3))
        (runs.step_folder(tmp_path, 2) / "manifest.json").unlink(
            missing_ok=True
        )  # no longer complete: not worth a place
    assert [path.name[-1] for path in runs.step_folders(tmp_path)] == ["7", "6", "3"]


def test_when_all_are_damaged_nothing_starts_anew_in_silence(new_run, save_run, resume, tmp_path):
    run = new_run()
    for _ in range(2):
        run.train(1)
        save_run(run)
    for folder in runs.step_folders(tmp_path):
        (folder / "weights-00000.safetensors").unlink()
    for _ in range(2):  # the second time too
        with pytest.raises(CheckpointError, match=r"none is whole.*weights-00000\.safetensors is missing"):
            resume(new_run())
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("content", [None, "", "step-00000099\n", "\0\xff"])
def test_a_lost_or_wrong_latest_costs_nothing(new_run, save_run, resume, tmp_path, content):
    run = new_run()
    run.train(3)
    save_run(run)
    latest = runs.folder_of(tmp_path) / "latest"
    latest.unlink()
    if content is not None:
        latest.write_text(content)
    assert resume(new_run()).step == 3
    assert runs.open_checkpoint(tmp_path).manifest.step == 3


def _save_and_be_killed(run, folder, config, moment):
    module, _, name = moment.partition(".")
    setattr(import_module(f"ringmoe.checkpoint.{module}"), name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    save.save_checkpoint(folder, run, run.state(), config=config)


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("store.save_file", 1),  # at the first file
        ("store.write_manifest", 1),  # after all tensors and documents
        ("store.flush", 1),  # in the middle of a file's way to the disk
        ("save.point_latest", 2),  # after the rename
        ("save.remove_old", 2),
    ],
)
def test_a_killed_save_leaves_a_whole_checkpoint(new_run, save_run, resume, tmp_path, config, moment, step):
    run = new_run()
    run.train(1)
    save_run(run)
    run.train(1)
    assert exit_code_of(_save_and_be_killed, run, tmp_path, config, moment) == -signal.SIGKILL
    again = new_run()
    assert resume(again).step == step
    assert not list(runs.folder_of(tmp_path).glob("*.tmp"))
    save_run(again)
    assert (runs.folder_of(tmp_path) / "latest").read_text() == f"step-{step:08d}\n"


def test_a_kill_between_manifest_and_rename_leaves_the_older_one(new_run, save_run, resume):
    run = new_run()
    run.train(1)
    save_run(run)
    run.train(1)
    folder = save_run(run)
    folder.rename(folder.with_name(f"{folder.name}.tmp"))
    assert resume(new_run()).step == 1


def _save_on_a_full_disk(run, folder, config):
    limit_files(500)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save.save_checkpoint(folder, run, run.state(), config=config)


def test_a_full_disk_leaves_the_older_one(new_run, save_run, resume, tmp_path, config):
    run = new_run()
    run.train(1)
    save_run(run)
    run.train(1)
    assert exit_code_of(_save_on_a_full_disk, run, tmp_path, config) == 0
    assert names(tmp_path) == ["latest", "step-00000001"]
    assert resume(new_run()).step == 1


def test_replacing_a_checkpoint_never_leaves_none(new_run, save_run, resume, tmp_path):
    run = new_run()
    run.train(2)
    folder = save_run(run, kept=runs.Kept(last=1))
    folder.rename(folder.with_name(f"{folder.name}.old"))  # as after a kill between the two renames of a second save
    assert resume(new_run()).step == 2
    assert names(tmp_path) == ["latest", "step-00000002"]
    shutil.copytree(folder, folder.with_name(f"{folder.name}.old"))  # as after a kill before the old one is deleted
    save_run(run, kept=runs.Kept(last=1))
    assert names(tmp_path) == ["latest", "step-00000002"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 6}, "seed is 5 in the checkpoint, 6 in this run"),
        ({"data_fingerprint": "xyz"}, 'data fingerprint is "abc" in the checkpoint, "xyz" in this run'),
    ],
)
def test_another_run_is_refused(new_run, save_run, resume, changes, reason):
    run = new_run()
    run.train(1)
    save_run(run)
    with pytest.raises(CheckpointError, match=reason):
        resume(new_run(), **changes)


def test_another_model_is_refused_and_both_sides_named(new_run, save_run, resume, config):
    run = new_run()
    run.train(1)
    save_run(run)
    other = json.loads(json.dumps(config))
    other["model"] |= {"top_k": 2, "modalities": ["opt", "ms"]}
    other["inputs"]["ms"] = {}
    other["inputs"]["opt"]["statistics"] = [0] * 100
    with pytest.raises(CheckpointError) as error:
        resume(new_run(), config=other)
    assert 'model.modalities is ["opt"] in the checkpoint, ["opt", "ms"] in this run' in str(error.value)
    assert "model.top_k is 1 in the checkpoint, 2 in this run" in str(error.value)
    assert "inputs.ms is absent in the checkpoint, {} in this run" in str(error.value)
    assert len(str(error.value)) < 800


def test_a_run_folder_opens_as_its_newest_complete_checkpoint(new_run, save_run, tmp_path, caplog):
    run = new_run()
    for _ in range(2):
        run.train(1)
        newest = save_run(run)
    assert runs.open_checkpoint(newest).path == newest
    (newest / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert runs.open_checkpoint(tmp_path).manifest.step == 1
    assert "step-00000002 has no manifest" in caplog.text
    (runs.step_folder(tmp_path, 1) / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        runs.open_checkpoint(tmp_path)
