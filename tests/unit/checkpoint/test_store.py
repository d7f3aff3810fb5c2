"""The store keeps what it promises: whole or not at all, every damaged byte noticed, one tensor in memory at a time."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ringmoe.checkpoint.disk import readable_size, require_space
from ringmoe.checkpoint.manifest import MANIFEST_FILE, FileEntry, Manifest, Table, TensorEntry, write_manifest
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter, ShareWriter, remove
from ringmoe.errors import CheckpointError
from tests.fixtures.child import exit_code_of, limit_files

CONFIG = {"format": 1, "family": "ringmoe", "model": {"dims": [4, 8]}, "inputs": {}}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "embed.opt.weight": torch.randn(8, 12, generator=generator),
        "blocks.0.moe.shared.w1": torch.randn(8, 32, generator=generator).bfloat16(),
        "blocks.0.moe.specialised.opt.0.b1": torch.randn(32, generator=generator),
        "norm.bias": torch.tensor(0.25),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    with CheckpointWriter(path, max_file_bytes=600) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
            writer.add(f"{name}.exp_avg", tensor.float() * 2, kind="optimizer")
        writer.commit(config=CONFIG, trainer={"format": 1, "step": 7}, step=7)
    return path


def test_everything_comes_back(checkpoint):
    reader = CheckpointReader(checkpoint)
    reader.verify()
    assert set(reader.names) == set(tensors())
    for name, tensor in tensors().items():
        found = reader.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        assert torch.equal(reader.tensor(f"{name}.exp_avg"), tensor.float() * 2)
    assert reader.config == CONFIG
    assert reader.trainer == {"format": 1, "step": 7}
    assert reader.manifest.step == 7


def test_files_are_bounded_and_hold_slices_of_a_stack_apart(tmp_path):
    stack_EDF = torch.randn(6, 10, 10)
    with CheckpointWriter(tmp_path / "model", max_file_bytes=900) as writer:
        for k, w_DF in enumerate(stack_EDF):
            writer.add(f"expert.{k}", w_DF)
        writer.commit(config=CONFIG)
    reader = CheckpointReader(tmp_path / "model")
    weights = sorted((tmp_path / "model").glob("weights-*.safetensors"))
    assert [path.name for path in weights] == [f"weights-{n:05d}.safetensors" for n in range(3)]
    assert all(path.stat().st_size < 900 + 200 for path in weights)
    assert all(torch.equal(reader.tensor(f"expert.{k}"), stack_EDF[k]) for k in range(6))


def test_every_damaged_byte_is_noticed_and_its_file_named(checkpoint):
    for path in sorted(checkpoint.iterdir()):
        whole = path.read_bytes()
        for place in {0, 9, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}:
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=path.name):
                CheckpointReader(checkpoint).verify()
        path.write_bytes(whole)
    CheckpointReader(checkpoint).verify()


def test_a_missing_or_truncated_file_is_named_at_once(checkpoint):
    path = checkpoint / "weights-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=rf"{path.name} has {len(whole) - 1} bytes instead of {len(whole)}"):
        CheckpointReader(checkpoint)
    path.unlink()
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{path.name} is missing; config.json is missing"):
        CheckpointReader(checkpoint)


def test_damage_after_opening_is_an_error_of_the_file(checkpoint):
    reader = CheckpointReader(checkpoint)
    file = reader.manifest.tensors["embed.opt.weight"].file
    (checkpoint / file).write_bytes(b"\xff" * reader.manifest.files[file].bytes)
    with pytest.raises(CheckpointError, match=rf"{file} cannot be read"):
        reader.tensor("embed.opt.weight")
    save_file({"embed.opt.weight": torch.zeros(3)}, checkpoint / file)
    with pytest.raises(CheckpointError, match=rf"{file}: embed.opt.weight is torch.float32 \(3,\)"):
        reader.tensor("embed.opt.weight")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", "..", "", "a\\b", MANIFEST_FILE])
def test_a_manifest_that_points_elsewhere_is_refused(tmp_path, name):
    manifest = Manifest(files={name: FileEntry(1, "0" * 64)}, tensors={})
    write_manifest(tmp_path, manifest)
    with pytest.raises(CheckpointError, match="only plain names"):
        CheckpointReader(tmp_path)


def test_a_tensor_in_an_unlisted_file_is_refused(tmp_path):
    write_manifest(tmp_path, Manifest(files={}, tensors={"x": TensorEntry("../x", "float32", (1,))}))
    with pytest.raises(CheckpointError, match="not among its files"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "holds a list"),
        ("{", "damaged"),
        ('{"format": 2}', "format 2.*update"),
        ("{}", "checksum does not fit"),
    ],
)
def test_what_is_no_manifest_is_said_to_be_none(tmp_path, text, reason):
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        CheckpointReader(tmp_path)


def test_folders_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        CheckpointReader(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        CheckpointReader(tmp_path)


def test_unknown_names_are_errors(checkpoint):
    reader = CheckpointReader(checkpoint)
    with pytest.raises(CheckpointError, match="has no tensor nobody"):
        reader.tensor("nobody")
    with pytest.raises(CheckpointError, match=r"has no usage\.json"):
        reader.document("usage.json")


def test_without_commit_nothing_is_left(tmp_path):
    def interrupted() -> None:
        with CheckpointWriter(tmp_path / "model", max_file_bytes=10) as writer:
            writer.add("a", torch.ones(100))
            writer.add("b", torch.ones(100))
            assert (tmp_path / "model.tmp" / "weights-00000.safetensors").is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_deleted_is_said(checkpoint, caplog):
    remove(checkpoint)
    remove(checkpoint)
    assert not checkpoint.exists()
    assert not caplog.records
    checkpoint.write_text("no folder at all")
    remove(checkpoint)
    assert f"{checkpoint} takes room and cannot be deleted" in caplog.text


def test_an_existing_folder_is_not_overwritten(checkpoint):
    with pytest.raises(CheckpointError, match="exists already"):
        CheckpointWriter(checkpoint)


def test_names_are_given_once(tmp_path):
    share = ShareWriter(tmp_path, max_file_bytes=8)
    for name in "abc":
        share.add(name, torch.zeros(2))
    for name in "ac":  # written already, and still waiting
        with pytest.raises(ValueError, match=f"{name} was added twice"):
            share.add(name, torch.zeros(2))
    other = Table(tensors={"b": TensorEntry("weights-00001.safetensors", "float32", (2,))})
    with pytest.raises(ValueError, match="written twice: b"):
        share.close().add(other)


def test_ranks_number_their_files_apart(tmp_path):
    table = Table()
    for rank in range(3):
        share = ShareWriter(tmp_path, rank=rank, world=3, max_file_bytes=8)
        for part in "ab":
            share.add(f"{rank}.{part}", torch.full((2,), float(rank)))
        table.add(share.close())
    assert sorted(table.files) == [f"weights-{n:05d}.safetensors" for n in range(6)]
    assert table.tensors["1.b"].file == "weights-00004.safetensors"


def _write(folder):
    with CheckpointWriter(folder / "model") as writer:
        writer.add("w", torch.zeros(100_000))
        writer.commit(config={})


def _write_on_a_full_disk(folder):
    limit_files(100_000)
    with pytest.raises(CheckpointError, match=r"model\.tmp/weights-00000\.safetensors cannot be written"):
        _write(folder)


def test_a_full_disk_ends_in_words_and_leaves_nothing(tmp_path):
    assert exit_code_of(_write_on_a_full_disk, tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_space_is_asked_for_before_it_is_used(tmp_path):
    require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(CheckpointError, match=r"1000\.0 TB are needed but .* are free"):
        require_space(tmp_path, 10**15)
    assert [readable_size(n) for n in (0, 999, 1500, 29.5e9)] == ["0 B", "999 B", "1.5 kB", "29.5 GB"]


def test_the_manifest_is_plain_json(checkpoint):
    values = json.loads((checkpoint / MANIFEST_FILE).read_text())
    assert list(values) == ["format", "files", "tensors", "step", "topology", "sha256"]
    entry = values["tensors"]["blocks.0.moe.shared.w1"]
    assert entry["dtype"] == "bfloat16"
    assert entry["shape"] == [8, 32]
    assert values["files"][entry["file"]]["bytes"] == (checkpoint / entry["file"]).stat().st_size
