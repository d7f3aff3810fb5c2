import json
import tarfile
from io import BytesIO

import numpy as np
import pytest

from ringmoe.data.build import build
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.errors import ShardError
from ringmoe.raster.tiling import TilingConfig

from .conftest import write_scene


def _in_tar_order(manifest, key, split):
    """Every tile of a split as a plain tar reader sees it."""
    for shard in manifest.modalities[key].splits[split].shards:
        with tarfile.open(manifest.root / shard.name) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    record = json.loads(content)
                else:
                    name = f"{manifest.root.name}/{shard.name}:{member.name.removesuffix('.npy')}"
                    yield name, np.load(BytesIO(content)), record


@pytest.mark.parametrize(("key", "split"), [("opt", "train"), ("opt", "val"), ("sar_l1", "train")])
def test_reading_by_position_gives_what_the_tars_hold(shards, key, split):
    reader = TileReader([shards], key, split)
    expected = list(_in_tar_order(shards, key, split))
    assert reader.num_samples == len(expected) == sum(reader.shard_sizes)
    order = np.random.default_rng(0).permutation(len(expected))
    (block,), names = reader.read(order)
    for place, sample in enumerate(order):
        name, pixels, record = expected[sample]
        assert names[place] == name
        np.testing.assert_array_equal(block.pixels_BCHW[place], pixels)
        assert reader.statistics.groups[block.groups_B[place]].sensor == record["sensor"]
    blocks, names = reader.read(order[:0])
    assert (blocks, len(names)) == ([], 0)
    reader.close()


def test_folders_of_other_tile_sizes_and_types_are_read_together(tmp_path):
    roots = []
    for number, (tile, dtype, sensor) in enumerate(((16, "uint8", "A"), (24, "uint16", "B"), (16, "uint8", "A"))):
        write_scene(tmp_path / f"in{number}/x.tif", "ms", seed=number, dtype=dtype, sensor=sensor)
        config = BuildConfig(tiling=TilingConfig(tile=tile, stride=tile))
        roots.append(build([tmp_path / f"in{number}"], tmp_path / f"out{number}", config).manifest.root)
    manifests = [Manifest.open(root) for root in roots]
    reader = TileReader(manifests, "ms", "train")
    sizes = [manifest.modalities["ms"].num_kept for manifest in manifests]
    assert reader.num_samples == sum(sizes)
    samples = np.array([0, sizes[0], sum(sizes) - 1, 1])
    blocks, names = reader.read(samples)
    assert [(block.places_B.tolist(), block.pixels_BCHW.shape, block.pixels_BCHW.dtype.name) for block in blocks] == [
        ([0, 2, 3], (3, 4, 16, 16), "uint8"),
        ([1], (1, 4, 24, 24), "uint16"),
    ]
    assert [name.split("/")[0] for name in names] == ["out0", "out1", "out2", "out0"]
    # the sensor that two folders share has one set of statistics, over the tiles of both
    assert [group.sensor for group in reader.statistics.groups] == ["A", "B"]
    parts = [manifests[i].modalities["ms"].groups[0].group.channels[0] for i in (0, 2)]
    merged = reader.statistics.groups[0].channels[0]
    assert merged.count == sum(part.count for part in parts)
    assert merged.mean == pytest.approx(sum(part.mean * part.count for part in parts) / merged.count)
    assert merged.minimum == min(part.minimum for part in parts)


def test_a_missing_shard_is_named_before_anything_is_read(own_shards):
    root = own_shards()
    (root / "opt/train-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"opt/train-000001\.tar is missing"):
        TileReader([Manifest.open(root)], "opt", "train")
    (root / "opt/train-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"opt/train-000000\.tar and 1 more shards are missing"):
        TileReader([Manifest.open(root)], "opt", "train")


def test_a_truncated_shard_is_named_when_it_is_first_read(own_shards):
    """Not before: forty thousand sizes are as many questions to a file system that may be far away."""
    root = own_shards()
    path = root / "opt/train-000001.tar"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-2000])
    reader = TileReader([Manifest.open(root)], "opt", "train")
    reader.read(np.arange(40))
    message = rf"train-000001\.tar has {len(content) - 2000:,} bytes.*{len(content):,}"
    with pytest.raises(ShardError, match=message):
        reader.read(np.arange(39, 42))
    path.unlink()
    with pytest.raises(ShardError, match=r"train-000001\.tar is missing"):
        reader.read(np.array([40]))


def test_a_damaged_member_is_named(own_shards):
    manifest = Manifest.open(own_shards())
    row = manifest.open_index("opt", "train")[3]
    with (manifest.root / "opt/train-000000.tar").open("r+b") as file:
        file.seek(int(row["offset"]) + 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    reader = TileReader([manifest], "opt", "train")
    key = f"_r{row['row']:06d}_c{row['col']:06d}"
    with pytest.raises(ShardError, match=rf"copy/opt/train-000000\.tar:.*{key}: its pixels are not those"):
        reader.read(np.arange(5))
    reader.read(np.array([0, 1, 2, 4]))
    TileReader([manifest], "opt", "train", verify=False).read(np.arange(5))


def test_a_shard_that_shrinks_while_it_is_read_is_named(own_shards):
    manifest = Manifest.open(own_shards())
    reader = TileReader([manifest], "sar_l2", "train")
    reader.read(np.array([0]))
    with (manifest.root / "sar_l2/train-000000.tar").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ShardError, match=r"sar_l2/train-000000\.tar:.* could be read"):
        reader.read(np.array([reader.num_samples - 1]))


def test_a_missing_modality_or_split_is_named_with_what_there_is(shards, tmp_path):
    with pytest.raises(ShardError, match=r"modality 'hyper'.*holds opt, ms, sar_l1, sar_l2"):
        TileReader([shards], "hyper", "train")
    write_scene(tmp_path / "in/x.tif", "opt")
    report = build([tmp_path / "in"], tmp_path / "out", BuildConfig(tiling=TilingConfig(tile=16)))
    with pytest.raises(ShardError, match=r"no tile of modality 'opt' is in split 'val'.*--holdout"):
        TileReader([report.manifest], "opt", "val")
    assert TileReader([report.manifest, shards], "opt", "val").num_samples == 16
