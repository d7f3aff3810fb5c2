import json
import tarfile

import numpy as np
import webdataset

from ringmoe.batch import Tile, TileRecord
from ringmoe.data.layout import member_key, slugs
from ringmoe.data.writer import ShardWriter


def _tiles():
    generator = np.random.default_rng(0)
    for number, (dtype, channels, size) in enumerate((("uint8", 3, 15), ("uint16", 4, 16), ("float32", 8, 16))):
        record = TileRecord(
            modality="opt",
            bands=("R", "G", "B"),
            units="dn",
            dtype=dtype,
            sensor="s",
            source="a/b.tif",
            row=number,
            col=64,
            size=size,
            nodata=float("nan") if dtype == "float32" else None,
        )
        yield Tile(generator.integers(0, 200, (channels, size, size)).astype(dtype), record)


def _write(path):
    with ShardWriter(path) as writer:
        for tile in _tiles():
            writer.add(member_key("a-b", tile.record.row, 64), tile, scene=5, group=1)
        return writer.finish()


def test_plain_webdataset_reads_a_shard(tmp_path):
    shard, rows = _write(tmp_path / "x.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"a-b_r{i:06d}_c000064" for i in range(3)]
    for sample, tile in zip(samples, _tiles(), strict=True):
        np.testing.assert_array_equal(sample["npy"], tile.pixels_CHW)
        assert sample["npy"].dtype == tile.pixels_CHW.dtype
        assert repr(TileRecord.from_dict(sample["json"])) == repr(tile.record)
    assert shard.samples == len(rows) == 3
    assert shard.bytes == (tmp_path / "x.tar").stat().st_size


def test_the_index_points_at_the_raw_pixels(tmp_path):
    _, rows = _write(tmp_path / "x.tar")
    content = (tmp_path / "x.tar").read_bytes()
    for row, tile in zip(rows, _tiles(), strict=True):
        assert content[row["offset"] :][: row["length"]] == tile.pixels_CHW.tobytes()
        assert (row["scene"], row["group"], row["col"]) == (5, 1, 64)


def test_bytes_depend_on_the_tiles_only(tmp_path):
    first, second = _write(tmp_path / "x.tar")[0], _write(tmp_path / "y.tar")[0]
    assert first == second
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert {(member.mtime, member.uname, member.uid) for member in tar} == {(0, "ringmoe", 0)}
        assert json.load(tar.extractfile("a-b_r000002_c000064.json"))["nodata"] == "nan"


def test_an_unfinished_shard_leaves_nothing(tmp_path):
    with ShardWriter(tmp_path / "x.tar") as writer:
        for tile in _tiles():
            writer.add("k", tile, scene=0, group=0)
        assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    assert not list(tmp_path.iterdir())


def test_slugs_are_short_plain_and_unique():
    names = ["a/b.tif", "a-b.tif", "A/B.TIF", "x/" + "y" * 200 + ".tif", "S1A.SAFE/m (1).tiff", "...", "é/ü.tif"]
    found = slugs(names)
    assert found[:3] == ["a-b", "a-b-2", "A-B-3"]
    assert found[4] == "S1A-SAFE-m-1"
    assert len({slug.lower() for slug in found}) == len(names)
    for slug in found:
        assert 0 < len(f"{member_key(slug, 999_999, 999_999)}.json") <= 100
        assert "." not in slug
        assert slug.isascii()
