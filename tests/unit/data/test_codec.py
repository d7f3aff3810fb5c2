import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pcodec import ChunkConfig, standalone

from ringmoe.data.build import build
from ringmoe.data.codec import CODECS, decode, encode, most_bytes
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.errors import ShardError

from .conftest import SMALL

README = Path(__file__).parents[3] / "shards" / "README.md"
KEYS = ("opt", "ms", "sar_l1", "sar_l2")


def _tile(dtype, kind, shape=(4, 15, 17)):
    generator = np.random.default_rng(0)
    if kind == "noise":  # for floating-point types this has NaN of all kinds, infinities and negative zeros
        return np.frombuffer(generator.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)
    if kind == "constant":
        return np.full(shape, 7, dtype)
    waves = 60 + 50 * np.sin(np.mgrid[: shape[1], : shape[2]].sum(0) / 9) + generator.normal(size=shape)
    return waves.astype(dtype)


@pytest.mark.parametrize("kind", ["noise", "constant", "smooth"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("codec", CODECS)
def test_not_a_bit_is_lost(codec, dtype, kind):
    tile = _tile(dtype, kind)
    stored = encode(tile, codec)
    back = np.ones_like(tile)
    decode(stored, codec, back)
    assert back.tobytes() == tile.tobytes()
    assert len(stored) <= most_bytes(codec, tile.nbytes)
    if codec != "raw" and kind != "noise":
        assert len(stored) < 0.85 * tile.nbytes


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_tile_of_this_kind_is_refused(codec):
    tile = _tile("uint16", "smooth")
    stored = encode(tile, codec)
    for wrong in (stored[:-40], b"", encode(tile[:3], codec), encode(np.concatenate((tile, tile)), codec)):
        with pytest.raises(ValueError, match=r"numbers|bytes|pco error"):
            decode(wrong, codec, np.empty_like(tile))
    if codec != "raw":
        with pytest.raises(ValueError, match="U16"):
            decode(encode(tile.view("int16"), codec), codec, np.empty_like(tile))


def test_hostile_streams_end_in_an_error_or_in_a_tile():
    """Whatever the bytes are, the decoder neither crashes nor writes beyond the tile."""
    generator = np.random.default_rng(0)
    tile = _tile("uint8", "smooth")
    stored = encode(tile, "pco")
    room = np.full((6, *tile.shape[1:]), 99, np.uint8)
    outcomes = set()
    for _ in range(3000):
        wrong = bytearray(stored)
        for place in generator.integers(0, min(len(wrong), 200), 3):
            wrong[place] ^= int(generator.integers(1, 256))
        try:
            decode(bytes(wrong), "pco", room[1:5])
            outcomes.add("decoded")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}
    assert (room[[0, 5]] == 99).all()


def test_a_bomb_takes_no_memory(tmp_path):
    """A quarter of a gigabyte in a few hundred bytes, decoded in a process whose memory can be told."""
    bomb = standalone.simple_compress(np.zeros(1 << 25, np.uint64), ChunkConfig())
    assert len(bomb) < 10_000
    (tmp_path / "bomb").write_bytes(bomb)
    code = f"""
import pathlib, resource, numpy as np
from ringmoe.data.codec import decode
stored = pathlib.Path({str(tmp_path / "bomb")!r}).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(stored, "pco", np.empty((3, 16, 16), np.uint64))
except ValueError as error:
    print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep=";")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    message, kibibytes = done.stdout.split(";")
    assert message == "it does not hold exactly 768 numbers"
    assert int(kibibytes) < 32 << 10


@pytest.fixture(scope="module")
def coded(archive, tmp_path_factory) -> Path:
    """The shards of the archive, coded."""
    config = BuildConfig(tiling=SMALL.tiling, tiles_per_shard=SMALL.tiles_per_shard, codec="pco")
    return build([archive], tmp_path_factory.mktemp("coded") / "coded", config).manifest.root


@pytest.mark.parametrize("key", KEYS)
def test_coded_shards_hold_the_same_tiles(shards, coded, key):
    raw, dense = TileReader([shards], key, "train"), TileReader([Manifest.open(coded)], key, "train")
    order = np.random.default_rng(0).permutation(raw.num_samples)
    (expected,), names = raw.read(order)
    (found,), coded_names = dense.read(order)
    assert found.pixels_BCHW.dtype == expected.pixels_BCHW.dtype
    assert found.pixels_BCHW.tobytes() == expected.pixels_BCHW.tobytes()
    assert [name.replace("coded/", "shards/") for name in coded_names] == list(names)
    assert raw.statistics == dense.statistics


def test_raw_and_coded_folders_are_read_together(shards, coded):
    reader = TileReader([shards, Manifest.open(coded)], "ms", "train")
    half = reader.num_samples // 2
    samples = np.array([3, half + 3, 0, half])
    blocks, names = reader.read(samples)
    assert [block.places_B.tolist() for block in blocks] == [[0, 2], [1, 3]]
    np.testing.assert_array_equal(blocks[0].pixels_BCHW, blocks[1].pixels_BCHW)
    assert [name.split("/")[0] for name in names] == ["shards", "coded", "shards", "coded"]


def _spoil(root, key, sample, *, place=30, **fields):
    """Changes a stored byte of a tile, or fields of its row of the index."""
    manifest = Manifest.open(root)
    index = np.load(root / key / "train.index.npy")
    if fields:
        for name, value in fields.items():
            index[name][sample] = value
        np.save(root / key / "train.index.npy", index)
    else:
        with (root / key / "train-000000.tar").open("r+b") as file:
            file.seek(int(index["offset"][sample]) + place)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0xFF]))
    return manifest


@pytest.fixture
def own_coded(coded, tmp_path):
    return Path(shutil.copytree(coded, tmp_path / "copy"))


def test_a_damaged_coded_tile_is_named(own_coded):
    manifest = _spoil(own_coded, "opt", 2)
    with pytest.raises(ShardError, match=r"copy/opt/train-000000\.tar:.*_c000016: its pixels.*wrong checksum"):
        TileReader([manifest], "opt", "train").read(np.arange(5))
    manifest = _spoil(own_coded, "ms", 2, place=0)
    with pytest.raises(ShardError, match=r"copy/ms/train-000000\.tar:.*its pixels are not those.*magic header"):
        TileReader([manifest], "ms", "train", verify=False).read(np.arange(5))


@pytest.mark.parametrize("fields", [{"length": 4_000_000_000}, {"length": 0}, {"group": 999}, {"offset": 2**64 - 1}])
def test_an_index_that_lies_is_refused(own_coded, own_shards, fields):
    for root in (own_coded, own_shards("other")):
        with pytest.raises(ShardError, match=r"the index says that|index is damaged|cannot be read at byte"):
            TileReader([_spoil(root, "opt", 1, **fields)], "opt", "train").read(np.arange(3))


def _example(number, shard, tmp_path, capsys):
    """Runs a program of the page about shards on another shard: what it prints, and its names."""
    programs = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(programs[number].replace("shards/NAME/opt/train-000000.tar", str(shard)))
    capsys.readouterr()
    names = runpy.run_path(str(script))
    return capsys.readouterr().out.splitlines(), names


@pytest.mark.parametrize("key", KEYS)
def test_the_examples_of_the_page_open_shards_without_this_project(shards, coded, tmp_path, capsys, key):
    raw, _ = _example(0, shards.root / key / "train-000000.tar", tmp_path, capsys)
    dense, names = _example(1, coded / key / "train-000000.tar", tmp_path, capsys)
    assert len(raw) == Manifest.open(coded).modalities[key].splits["train"].shards[0].samples
    assert dense == raw
    (block,), sample_names = TileReader([shards], key, "train").read(np.array([len(raw) - 1]))
    assert sample_names[0].endswith(names["sample"]["__key__"])
    np.testing.assert_array_equal(names["sample"]["pco"], block.pixels_BCHW[0], strict=True)
