"""The command as a person types it."""

import json

import pytest

from ringmoe.batch import Batch
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.cli import prune
from ringmoe.compress.apply import source_config
from ringmoe.compress.plan import CompressionPlan
from ringmoe.compress.usage import measure


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``ringmoe-prune`` with arguments; gives its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["ringmoe-prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            prune.main()
        printed = capsys.readouterr()
        return exit_.value.code, printed.out + printed.err

    return run


@pytest.fixture(scope="module")
def usage(model, images):
    return measure(model, [Batch({key: images(key) for key in model.config.modalities})], source="made up tiles")


def test_a_preset_is_planned_without_weights(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = command("--preset", "ringmoe-14b", "--mode", "kc", "--modality", "opt", "--dry-run")
    assert code == 0
    for figure in ("14,781,026,532", "6,536,361,764", "1,062,009,636", "14.740 B", "6.532 B", "1.060 B", "4-21"):
        assert figure in text
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_becomes_a_smaller_one(command, reader, tmp_path):
    plan_file, out = tmp_path / "plan.json", tmp_path / "small"
    code, text = command(reader.path, out, "--mode", "kc", "--modality", "opt", "--plan", plan_file)
    assert code == 0, text
    assert "are needed" in text
    result = CheckpointReader(out)
    result.verify()
    plan = CompressionPlan.from_dict(json.loads(plan_file.read_text()))
    assert source_config(result) == plan.result
    assert f"{plan.ledger[0].total:,} -> {plan.ledger[-1].total:,} parameters" in text
    code, text = command(out, tmp_path / "smaller", "--mode", "ks")
    assert code == 2
    assert "dense already" in text
    assert not (tmp_path / "smaller").exists()


def test_pruning_reads_the_usage_that_training_stored(command, reader, usage, tmp_path):
    run_folder = tmp_path / "run"
    with CheckpointWriter(run_folder / "checkpoints" / "step-00000012") as writer:
        for name in reader.names:
            writer.add(name, reader.tensor(name))
        writer.commit(config=reader.config, documents={"usage.json": usage.to_dict()})
    code, text = command(run_folder, tmp_path / "stored", "--mode", "ep", "--modality", "opt", "--keep-decoders")
    assert code == 0, text
    assert "made up tiles" in text
    usage.save(tmp_path / "usage.json")
    file = ("--usage", tmp_path / "usage.json")
    assert command(reader.path, tmp_path / "named", "--mode", "ep", "--modality", "opt", *file)[0] == 0
    stored, named = CheckpointReader(tmp_path / "stored"), CheckpointReader(tmp_path / "named")
    assert source_config(stored).collaborative_kept == source_config(named).collaborative_kept
    assert "decoders.opt.weight" in stored.names
    assert "decoders.opt.weight" not in named.names


def test_a_dry_run_writes_nothing(command, reader, tmp_path):
    code, text = command(reader.path, "--mode", "extract", "--modality", "sar_l2", "--dry-run")
    assert code == 0
    assert "sub-model (extract) for sar_l2" in text


def test_what_is_wrong_is_said_and_nothing_written(command, reader, tmp_path):
    out = tmp_path / "out"
    damaged = tmp_path / "damaged"
    with CheckpointWriter(damaged, max_file_bytes=10_000) as writer:
        for name in reader.names:
            writer.add(name, reader.tensor(name))
        writer.commit(config=reader.config)
    file = damaged / "weights-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    opt = ("--modality", "opt")
    complaints = [
        ((reader.path, out, "--mode", "ep", *opt), "which experts stay is not decided"),
        ((reader.path, out, "--mode", "ep", *opt, "--keep", 0.5, "--threshold", 0.1), "exclude each other"),
        ((reader.path, out, "--mode", "ep", *opt, "--usage", "u", "--shards", "s"), "exclude each other"),
        ((reader.path, out, "--mode", "ep", *opt, "--usage", tmp_path / "nobody"), "cannot be read as usage"),
        ((reader.path, out, "--mode", "kc", "--modality", "ms"), "the model has opt, sar_l2"),
        ((reader.path, out, "--mode", "kc"), "say which the result shall"),
        ((reader.path, "--mode", "kc", *opt), "give a checkpoint and a folder"),
        ((reader.path, reader.path, "--mode", "kc", *opt), "exists already"),
        ((tmp_path / "nobody", out, "--mode", "kc"), "no such folder"),
        ((damaged, out, "--mode", "kc", *opt), "weights-00003.safetensors has another checksum"),
        ((reader.path, out, "--mode", "kc", *opt, "--rank", 0), "rank 0 of a matrix of 8 x 32; expected 1 to 8"),
        ((reader.path, out, "--mode", "kc", *opt, "--rank", 9), "rank 9 of a matrix of 8 x 32; expected 1 to 8"),
        ((reader.path, out, "--mode", "kc", *opt, "--workers", 0), "0 worker processes; expected at least 1"),
        (("--preset", "tiny", "--mode", "kc", *opt), "goes with --dry-run"),
        (
            ("--preset", "tiny", "--mode", "ep", *opt, "--dry-run", "--shards", "s"),
            "--shards does nothing with --preset",
        ),
        (("--preset", "tiny", "--mode", "ep", *opt, "--dry-run", "--usage", "u"), "cannot be read as usage"),
        (("--preset", "huge", "--mode", "kc", *opt, "--dry-run"), "no preset 'huge'"),
    ]
    for arguments, complaint in complaints:
        code, text = command(*arguments)
        assert code == 2, arguments
        assert complaint in text.replace("\n", " "), text
        assert "Traceback" not in text
    assert command(reader.path, out, "--mode", "svd")[0] == 2
    file.unlink()
    assert "weights-00003.safetensors is missing" in command(damaged, out, "--mode", "kc", *opt)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
