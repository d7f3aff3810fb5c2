import pytest

from ringmoe.cli import shards as commands
from ringmoe.cli.console import guarded
from ringmoe.cli.main import VERBS
from ringmoe.cli.shards import ShardsFolder
from ringmoe.errors import ShardError

SETTINGS = ("--tile", "16", "--stride", "8", "--holdout", "0.25", "--tiles-per-shard", "40")


def _run(verb, *arguments):
    VERBS[verb].run(verb, [str(argument) for argument in arguments])


def test_build_list_and_verify(archive, tmp_path, capsys):
    out = tmp_path / "out"
    _run("shards build", archive / "opt", archive / "sar_l2", out, *SETTINGS)
    text = capsys.readouterr().out
    assert "opt: dropped 16 of 112 windows\n  16 split_border: across the border between" in text
    assert "sensor of sar_l2" in text
    _run("shards build", archive / "opt", archive / "sar_l2", out, *SETTINGS)
    assert "reused" in capsys.readouterr().out
    _run("shards list", out)
    assert "112" in capsys.readouterr().out
    _run("shards verify", out)
    assert "all 17 files are as they were written, and all 144 tiles are" in capsys.readouterr().out


def test_damage_ends_with_a_list_and_a_code(own_shards, capsys):
    root = own_shards()
    (root / "opt/train-000001.tar").unlink()
    with pytest.raises(ShardError, match="is damaged, 1 faults:"):
        commands.verify(ShardsFolder(folder=root))
    assert guarded(lambda: commands.verify(ShardsFolder(folder=root))) == 2
    assert "train-000001.tar cannot be read" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("arguments", [("only-one",), ("a", "b", "--workers", "0"), ("a", "b", "--tile", "0")])
def test_wrong_command_lines_are_refused(arguments):
    with pytest.raises(SystemExit) as caught:
        _run("shards build", *arguments)
    assert caught.value.code == 2


def test_declarations_are_read(archive, tmp_path, capsys):
    (tmp_path / "declared.yaml").write_text("scenes:\n  - {match: '*.tif', sensor: GF-2}\n")
    _run("shards build", archive / "opt", tmp_path / "out", *SETTINGS, "--declarations", tmp_path / "declared.yaml")
    assert "'GF-2'" in capsys.readouterr().out
