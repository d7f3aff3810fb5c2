import re
import tarfile

import numpy as np
import pytest

from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig
from ringmoe.data.verify import verify_tiles
from ringmoe.raster.tiling import TilingConfig

from .conftest import write_scene


@pytest.fixture(params=["raw", "pco"])
def root(request, tmp_path):
    """Own shards of one scene: 16 tiles in one shard."""
    write_scene(tmp_path / "in/x.tif", "ms")
    config = BuildConfig(tiling=TilingConfig(tile=16, stride=16), codec=request.param)
    return build([tmp_path / "in"], tmp_path / "out", config).manifest.root


def _faults(root):
    return {name: faults for name, faults in verify_tiles(Manifest.open(root)) if faults}


def _change_row(root, **fields):
    index = np.load(root / "ms/train.index.npy")
    for name, change in fields.items():
        index[name][2] = change(index[name][2])
    np.save(root / "ms/train.index.npy", index)


def test_all_is_well(root):
    assert list(verify_tiles(Manifest.open(root))) == [("ms/train-000000.tar", [])]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("offset", "the tar says otherwise"),
        ("length", "the tar says otherwise"),
        ("xxh3", "wrong checksum"),
        ("row", "the index has"),
        ("scene", "a scene or group that the manifest does not have"),
        ("group", "a scene or group that the manifest does not have"),
    ],
)
def test_an_index_that_was_written_wrong_is_found(root, field, message):
    """Every one of these would pass for a folder whose files have the checksums of the manifest."""
    _change_row(root, **{field: lambda value: value + 1})
    (faults,) = _faults(root).values()
    assert len(faults) == 1
    assert "_r000000_c000032" in faults[0]
    assert message in faults[0]


@pytest.mark.parametrize(
    ("place", "message"),  # bytes from the first of the pixels: these, the header of the array, that of the tar
    [(5, "wrong checksum"), (-90, "header is not that of"), (-128 - 512 + 20, "ends before")],
)
def test_damage_is_told_with_its_tile(root, place, message):
    row = np.load(root / "ms/train.index.npy")[2]
    with (root / "ms/train-000000.tar").open("r+b") as file:
        file.seek(int(row["offset"]) + place)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x55]))
    (fault,) = _faults(root)["ms/train-000000.tar"]
    assert "_r000000_c000032" in fault
    assert message in fault


def test_a_shard_that_ends_early_or_goes_on_is_told(root):
    path = root / "ms/train-000000.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    path.chmod(0o644)
    path.write_bytes(content[: members[20].offset] + bytes(1024))
    assert "ends before sample _r000032" in _faults(root)["ms/train-000000.tar"][-1]
    extra = content[members[0].offset : members[2].offset]
    path.write_bytes(content[: -(len(content) - members[-1].offset_data - -(-members[-1].size // 512) * 512)] + extra)
    assert "is not in the index" in _faults(root)["ms/train-000000.tar"][-1]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'"row": 0', b'"row": 1', r"its record says"),
        (b'"row": 0', b'"raw": 0', r"its record is damaged: .*raw"),
        (b'{"modality"', b'[[["dality"', r"its record is damaged"),
    ],
)
def test_a_record_that_is_no_record_of_its_tile_is_told(root, before, after, message):
    path = root / "ms/train-000000.tar"
    content = path.read_bytes()
    assert before in content
    path.chmod(0o644)
    path.write_bytes(content.replace(before, after, 1))
    (fault,) = _faults(root)["ms/train-000000.tar"]
    assert re.search(message, fault)
