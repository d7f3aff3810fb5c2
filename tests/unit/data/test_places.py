"""Shards of places: samples of several scenes, the account of every window, and bytes that depend on nothing else."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import webdataset as wds

from ringmoe.cli.main import VERBS
from ringmoe.data import files
from ringmoe.data.build import build
from ringmoe.data.durable import DurableFile
from ringmoe.data.manifest import Manifest
from ringmoe.data.places import PlaceManifest, PlaceReader, open_folder
from ringmoe.data.plan import BuildConfig
from ringmoe.data.rounds import BuildProgress
from ringmoe.data.verify import verify_tiles
from ringmoe.errors import ConfigError, SceneError, ShardError
from ringmoe.raster.declare import Declaration, Declarations
from ringmoe.raster.quality import REASONS
from ringmoe.raster.tiling import TilingConfig
from ringmoe.testing.http_server import FolderServer
from tests.fixtures.folders import differences
from tests.fixtures.places import blacken, write_archive, write_member

from .conftest import damage

SETTINGS = BuildConfig(tiling=TilingConfig(tile=16, stride=8, holdout=0.25), tiles_per_shard=60, grouped=True)
DOCS = Path(__file__).resolve().parents[3] / "docs" / "groups.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("archive") / "in")


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    return build([folder], tmp_path_factory.mktemp("out") / "shards", SETTINGS).manifest


def _account(manifest):
    """Sums over all places."""
    total = {"candidates": 0, "kept": 0, "dropped": Counter(), "left_out": Counter()}
    for place in manifest.grouped.places:
        total["candidates"] += place.candidates
        total["kept"] += place.kept
        total["dropped"].update(place.dropped)
        total["left_out"].update(place.left_out)
    return total


def test_samples_hold_the_same_ground_of_every_scene(folder, shards):
    found = {}
    for split in ("train", "val"):
        reader = PlaceReader(shards, split)
        for number, sample in enumerate(reader):
            assert sample.key not in found
            found[sample.key] = split
            assert reader[number - len(reader)].key == sample.key
            for tile in sample.tiles.values():
                record = tile.record
                with rasterio.open(folder.parent / record.source) as dataset:
                    window = rasterio.windows.Window(record.col, record.row, record.size, record.size)
                    pixels = dataset.read(window=window)
                if record.modality == "sar_l1":
                    pixels = np.stack([pixels.real, pixels.imag], 1).reshape(-1, *pixels.shape[1:])
                np.testing.assert_array_equal(tile.pixels_CHW, pixels)
    account = _account(shards)
    assert len(found) == account["kept"] > 0
    assert account["candidates"] == 2 * 49 == account["kept"] + account["dropped"]["split_border"]
    first = PlaceReader(shards, "train")[0]
    assert {name: tile.pixels_CHW.shape for name, tile in first.tiles.items()} == {
        "ms": (4, 16, 16),
        "opt": (3, 32, 32),
        "sar_l1": (8, 16, 16),
    }
    last = PlaceReader(shards, "val")[-1]
    assert [tile.record.acquired[:7] for tile in last.series("ms")] == ["2021-03", "2021-04", "2021-05"]
    assert last.series("opt") == []
    with pytest.raises(IndexError):
        PlaceReader(shards, "train")[len(found)]


def test_threads_share_a_reader(shards, monkeypatch):
    """Of which each would close what the other reads from."""
    monkeypatch.setattr(files, "_MOST_OPEN", 1)
    assert len(shards.grouped.splits["train"].shards) > 1
    reader = PlaceReader(shards, "train")
    expected = [sample.key for sample in reader]
    read = os.preadv

    def slowly(*wanted):
        time.sleep(1e-3)  # in which others get a turn
        return read(*wanted)

    monkeypatch.setattr(os, "preadv", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert [sample.key for sample in pool.map(reader.__getitem__, range(0, len(reader), 2))] == expected[::2]


def test_a_reader_is_pickled_without_its_index_and_closed(shards):
    reader = PlaceReader(shards, "train")
    key = reader[3].key
    stored = pickle.dumps(reader)
    assert reader._rows.tobytes() not in stored
    other = pickle.loads(stored)
    assert isinstance(other._rows, np.memmap)
    assert other[3].key == key
    assert reader._opened.shards._descriptors
    reader.close()
    assert not reader._opened.shards._descriptors
    assert reader[3].key == key


def test_what_is_in_no_place_is_named(shards):
    (refused,) = shards.refused
    assert (refused.name, refused.code) == ("in/c/alone.tif", "alone")


def test_statistics_count_every_tile_of_a_modality(shards):
    train = PlaceReader(shards, "train")
    (group,) = train.statistics["ms"].groups
    pixels = np.stack([tile.pixels_CHW for sample in train for tile in sample.series("ms")]).astype(float)
    np.testing.assert_allclose([channel.mean for channel in group.channels], pixels.mean((0, 2, 3)), rtol=1e-6)
    (entry,) = shards.grouped.modalities["ms"].groups
    assert entry.tiles["train"] == len(pixels)


def test_any_number_of_workers_gives_the_same_bytes(folder, shards, tmp_path):
    told = []
    build([folder], tmp_path / "out", SETTINGS, workers=2, progress=told.append)
    assert not differences(tmp_path / "out", shards.root)
    assert told[-1] == BuildProgress(98, 98)
    assert build([folder], tmp_path / "out", SETTINGS).num_reused == len(told) - 1 > 3
    with pytest.raises(ShardError, match="min_members was None and now is 2"):
        build([folder], tmp_path / "out", replace(SETTINGS, min_members=2))


def _build_and_die(folder, out, number):
    commit, count = DurableFile.commit, 0

    def deadly(file):
        nonlocal count
        count += 1
        commit(file)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    DurableFile.commit = deadly
    build([folder], out, SETTINGS)


@pytest.mark.parametrize("number", [3, 28])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(folder, shards, tmp_path, number):
    child = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(folder, tmp_path / "out", number))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    build([folder], tmp_path / "out", SETTINGS)
    assert not differences(tmp_path / "out", shards.root)


def test_the_account_says_whose_rule_dropped_a_window(tmp_path):
    archive = write_archive(tmp_path / "in")
    blacken(archive / "a/opt.tif", slice(0, 32))  # its first 16 of 64 rows
    strict = replace(SETTINGS, tiling=TilingConfig(tile=16, stride=16))
    account = _account(build([archive], tmp_path / "strict", strict).manifest)
    assert account == {"candidates": 32, "kept": 28, "dropped": {"black_border of opt": 4}, "left_out": {}}
    lenient = replace(strict, min_members=2)
    manifest = build([archive], tmp_path / "lenient", lenient).manifest
    assert _account(manifest) == {
        "candidates": 32,
        "kept": 32,
        "dropped": {},
        "left_out": {"black_border of opt": 4},
    }
    assert Counter(len(sample.tiles) for sample in PlaceReader(manifest, "train")) == {3: 28, 2: 4}


def test_a_broken_scene_takes_its_place_along_unless_enough_are_left(tmp_path):
    archive = write_archive(tmp_path / "in")
    damage(archive / "b/4.tif")
    manifest = build([archive], tmp_path / "all", SETTINGS).manifest
    assert [scene.name for scene in manifest.quarantined] == ["in/b/4.tif"]
    assert [(place.name, place.candidates) for place in manifest.grouped.places] == [
        ("in/a/ms.tif", 49),
        ("in/b/3.tif", 0),
    ]
    manifest = build([archive], tmp_path / "two", replace(SETTINGS, min_members=2)).manifest
    place = manifest.grouped.places[1]
    assert ([member.name for member in place.members], place.candidates) == (["ms.2021-03-03", "ms.2021-05-03"], 49)
    with pytest.raises(SceneError, match=r"b/4\.tif"):
        build([archive / "b/3.tif", archive / "b/4.tif", archive / "b/5.tif"], tmp_path / "named", SETTINGS)


def test_scenes_that_make_no_place_end_the_build_with_the_reason(tmp_path):
    write_member(tmp_path / "in/one.tif", "ms")
    write_member(tmp_path / "in/other.tif", "ms", east=510000.0)
    with pytest.raises(SceneError, match=r"no two scenes make a place:\n  in/one\.tif and 1 more: no other scene is"):
        build([tmp_path / "in"], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SceneError, match=r"one\.tif: no other scene"):
        build([tmp_path / "in/one.tif", tmp_path / "in/other.tif"], tmp_path / "out", SETTINGS)
    blacken(write_member(tmp_path / "black/opt.tif", "opt"), slice(0, 64))
    write_member(tmp_path / "black/ms.tif", "ms")
    with pytest.raises(
        SceneError, match="not a single tile is left: 42 windows dropped as black_border of opt, place 0;"
    ):
        build([tmp_path / "black"], tmp_path / "out", SETTINGS)
    with pytest.raises(ConfigError, match="needs --grouped"):
        BuildConfig(min_members=2)


def test_kinds_of_folders_are_not_mistaken(shards, own_shards):
    with pytest.raises(ShardError, match=r"holds groups of tiles, but single tiles .* docs/groups\.md"):
        Manifest.open(shards.root)
    with pytest.raises(ShardError, match="holds single tiles, but groups of tiles"):
        PlaceManifest.open(own_shards())
    assert isinstance(open_folder(shards.root), PlaceManifest)
    assert not isinstance(open_folder(own_shards("other")), PlaceManifest)
    with pytest.raises(ShardError, match="no sample in split 'val'"):
        PlaceReader(replace(shards, grouped=replace(shards.grouped, splits={})), "val")


def test_damage_is_found(folder, shards, tmp_path):
    build([folder], tmp_path / "out", SETTINGS)
    manifest = PlaceManifest.open(tmp_path / "out")
    path = manifest.root / manifest.grouped.splits["train"].shards[0].name
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"train-000000\.tar:in-a-ms_r000000_c000000: its content is not what was"):
        PlaceReader(manifest, "train")[0]
    assert len(PlaceReader(manifest, "train", verify=False)[0].tiles) == 3
    assert [fault for _, fault in manifest.verify() if fault] == ["has another checksum: its content changed"]
    path.write_bytes(bytes(content[:-1]))
    with pytest.raises(ShardError, match="but was written with"):
        PlaceReader(manifest, "train")
    text = (manifest.root / "manifest.json").read_text()
    (manifest.root / "manifest.json").write_text(re.sub(r'"kept": (\d)', r'"kept": 1\1', text, count=1))
    with pytest.raises(ShardError, match=r"is damaged: the 49 windows of in/a/ms\.tif are not the"):
        PlaceManifest.open(manifest.root)


@pytest.fixture
def own(shards, tmp_path):
    return Path(shutil.copytree(shards.root, tmp_path / "own"))


def _edit(root, change):
    values = json.loads((root / "manifest.json").read_bytes())
    change(values["grouped"])
    (root / "manifest.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("place", 2, "of place 2 at bytes 0 to .* there are 2 places"),
        ("length", 1 << 63, "of place 0 at bytes 0 to 9,223,"),
        ("offset", (1 << 64) - 1, "but there are 2 places, and the shard has"),
        ("offset", 512, "in-a-ms_r000000_c000000"),
        ("length", 700, "in-a-ms_r000000_c000000"),
        ("row", 8, "in-a-ms_r000008_c000000"),
    ],
)
def test_an_index_that_was_written_wrong_is_found(own, field, value, message):
    rows = np.load(own / "places/train.index.npy")
    rows[field][0] = value
    np.save(own / "places/train.index.npy", rows)
    manifest = PlaceManifest.open(own)
    with pytest.raises(ShardError, match=message) as refused:
        PlaceReader(manifest, "train")[0]
    assert "train-000000.tar" in str(refused.value)
    faults = dict(verify_tiles(manifest))["places/train-000000.tar"]
    assert any(re.search(message, fault) for fault in faults)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'{"place"', b'[[[[["e"', r"\.json: the record is damaged"),
        (b'{"place": "in/a/ms.tif"', b'{"plaice": "in/a/ms.ti"', r"\.json: the record is damaged \(KeyError"),
        (b'"in/a/ms.tif"', b'"in/a/mt.tif"', r"the record says \('in/a/mt\.tif', 0, 0\), manifest and index say"),
        (b'"members": {"ms":', b'"members": 1,"m":', r"\.json: the record is damaged"),
        (b'{"ms":', b'{"mx":', r"\.mx\.npy: the manifest has no such scene"),
        (
            b'"modality": "ms"',
            b'"modality": "mx"',
            r"\.ms\.npy: its record says mx, 16 pixels of .* the manifest has ms",
        ),
        (b'"size": 16', b'"size": 99', r"\.ms\.npy: its record says ms, 99 pixels"),
        (b'"dtype": "uint8"', b'"dtype": "O"', r"\.ms\.npy: its record says ms, 16 pixels of O"),
    ],
)
def test_a_record_that_is_no_record_of_its_sample_is_told(own, before, after, message):
    path = own / "places/train-000000.tar"
    content = path.read_bytes()
    assert before in content
    path.chmod(0o644)
    path.write_bytes(content.replace(before, after.ljust(len(before)), 1))
    with pytest.raises(ShardError, match=message):
        PlaceReader(PlaceManifest.open(own), "train", verify=False)[0]


def test_verify_reads_every_sample(own):
    manifest = PlaceManifest.open(own)
    assert [faults for _, faults in verify_tiles(manifest)] == [[]] * sum(
        len(samples.shards) for samples in manifest.samples
    )
    rows = np.load(own / "places/train.index.npy")
    rows["xxh3"][-1] ^= 1
    np.save(own / "places/train.index.npy", rows)
    *whole, (name, (fault,)) = [found for found in verify_tiles(manifest) if "train" in found[0]]
    assert name == manifest.grouped.splits["train"].shards[-1].name
    assert fault.startswith("in-b-3_r")
    assert fault.endswith("is not what was written (wrong checksum)")
    assert all(not faults for _, faults in whole)
    np.save(own / "places/train.index.npy", rows[:-1])

    def without_the_last(told):
        told["splits"]["train"]["shards"][-1]["samples"] -= 1
        told["places"][-1]["kept"] -= 1
        told["places"][-1]["candidates"] -= 1
        told["modalities"]["ms"]["groups"][0]["tiles"]["train"] -= 3

    _edit(own, without_the_last)
    manifest = PlaceManifest.open(own)
    assert "is not in the index" in dict(verify_tiles(manifest))[name][0]
    (own / "places/val.index.npy").write_bytes(b"")
    assert "no sample of val was read" in dict(verify_tiles(manifest))["places/val.index.npy"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it.update(tile=1 << 40), r"ms of in/a/ms\.tif, 1 times as fine: tile is 1099511627776 pixels"),
        (lambda it: it["places"][0]["members"][1].update(ratio=1 << 40), r"opt of in/a/ms\.tif, 1099511627776 times"),
        (lambda it: it["places"][0]["members"][1].update(ratio=0), "tile is 0 pixels"),
        (lambda it: it["places"][0]["members"][1].update(modality="x"), "is of modality 'x', of which it says nothing"),
        (lambda it: it["places"][0].update(left_out={"constant of ms": -1}), "is below zero"),
        (
            lambda it: it["modalities"]["ms"]["groups"][0]["group"].update(dtype="object"),
            "'ms': a group of type 'object'",
        ),
        (lambda it: it["modalities"]["ms"]["groups"][0]["group"]["channels"].pop(), "statistics of 3 channels"),
        (lambda it: it["modalities"]["opt"]["spec"].update(bands=["B", "G", "R"]), "B, G, R; now they are R, G, B"),
        (lambda it: it["splits"]["train"]["shards"][0].update(samples=-1), "has -1 samples; expected at least one"),
    ],
)
def test_damaged_manifests_are_refused_in_words(own, change, message):
    _edit(own, change)
    with pytest.raises(ShardError, match=message):
        PlaceManifest.open(own)


def test_an_index_that_is_no_index_is_refused(own):
    manifest, path = PlaceManifest.open(own), own / "places/train.index.npy"
    rows = np.load(path)
    content = path.read_bytes()
    much = f"({1 << 80},), }}".encode()
    long = content.replace(f"({len(rows)},), }}".encode().ljust(len(much)), much)
    assert long != content
    for damaged in (b"", content[:100], content.replace(b"'<u8'", b"'<u4'"), long):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"train\.index\.npy: the member index"):
            manifest.open_rows("train")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ShardError, match="no regular file"):
        manifest.open_rows("train")


def test_a_remote_manifest_that_nests_deep_is_refused_in_words(own):
    (own / "manifest.json").write_text("[" * 100_000)
    with FolderServer(own) as server, pytest.raises(ShardError, match="nest too deep"):
        open_folder(server.url)


def test_the_documented_lines_read_a_shard_with_plain_webdataset(shards, capsys):
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "wds." in block)
    path = shards.root / "places/train-000000.tar"
    exec(code.replace("shards/NAME/places/train-000000.tar", str(path)), {})
    assert "in-a-ms_r000000_c000000 (4, 16, 16) (3, 32, 32)" in capsys.readouterr().out


def test_scenes_of_one_day_are_read_with_plain_webdataset(tmp_path):
    """It lowers what stands behind the key of a sample."""
    for hour in (10, 11):
        write_member(tmp_path / f"in/{hour}.tif", "ms", date=f"2021-05-03T{hour}:20:30Z")
    manifest = build([tmp_path / "in"], tmp_path / "out", SETTINGS).manifest
    members = [member.name for member in manifest.grouped.places[0].members]
    assert members == ["ms.2021-05-03t102030", "ms.2021-05-03t112030"]
    path = manifest.root / "places/train-000000.tar"
    sample = next(iter(wds.WebDataset(str(path), shardshuffle=False).decode()))
    assert [sample[f"{member}.npy"].shape for member in members] == [(4, 16, 16)] * 2


def test_plan_build_list_and_verify(folder, tmp_path, capsys):
    def run(verb, *arguments):
        VERBS[verb].run(verb, [str(argument) for argument in arguments])
        return capsys.readouterr().out

    text = run("shards plan", folder, "--grouped", "--tile", "16")
    assert "2 places; 1 scene of none" in text
    assert "opt: in/a/opt.tif, time not known, 2 times as fine" in text
    told = json.loads(run("shards plan", folder, "--grouped", "--tile", "16", "--stride", "16", "--json"))
    assert [(place["name"], place["windows"]) for place in told["places"]] == [("in/a/ms.tif", 16), ("in/b/3.tif", 16)]
    assert told["places"][0]["members"][1] == {"name": "opt", "scene": "in/a/opt.tif", "modality": "opt", "ratio": 2}
    assert [(scene["name"], scene["code"]) for scene in told["alone"]] == [("in/c/alone.tif", "alone")]
    told = json.loads(run("shards plan", folder, "--grouped", "--tile", "16", "--min-members", "4", "--json"))
    assert (told["places"], len(told["alone"])) == ([], 7)
    assert "places" not in json.loads(run("shards plan", folder, "--tile", "16", "--json"))
    with pytest.raises(SystemExit):
        run("shards plan", folder, "--tile", "16", "--min-members", "3")
    assert "needs --grouped" in capsys.readouterr().err
    options = ("--grouped", "--tile", "16", "--stride", "16", "--min-members", "3")
    text = run("shards build", folder, tmp_path / "out", *options)
    assert "ms, opt, sar_l1" in text
    assert "3 x ms" in text
    assert "train: 32 samples of 16 pixels; 1 shard," in text
    assert run("shards list", tmp_path / "out") in text
    assert "coded" not in text
    blacken(write_archive(tmp_path / "in") / "a/opt.tif", slice(0, 32))
    text = run("shards build", tmp_path / "in", tmp_path / "coded", *options, "--holdout", "0.25", "--codec", "pco")
    assert "pixels are coded without loss, pco" in text
    assert "windows dropped: 4 black_border of opt" in text
    assert f"  black_border: {REASONS['black_border']}\n" in text
    assert "all 4 files are as they were written, and all 32 samples are what" in run("shards verify", tmp_path / "out")


def test_real_pairs(real_data, tmp_path):
    declared = Declarations(
        (Declaration(match="*_S1Hand_*", modality="sar_l2", bands=("A",), units="db", sensor="S1"),)
    )
    tiling = TilingConfig(tile=64, stride=64)
    config = BuildConfig(tiling=tiling, grouped=True)
    manifest = build([real_data / "paired_s1s2"], tmp_path / "s1s2", config, declarations=declared).manifest
    (place,) = manifest.grouped.places
    assert [member.name for member in place.members] == ["ms", "sar_l2"]
    assert (place.candidates, place.kept) == (40, 40)
    assert [refused.name for refused in manifest.refused] == ["paired_s1s2/Spain_7370579_LabelHand_r000-335.tif"]


def test_real_changes(real_data, tmp_path):
    path = tmp_path / "scenes.yaml"
    path.write_text(next(block for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.S)))
    source = real_data / "change_detection" / "levir_cd"
    config = BuildConfig(tiling=TilingConfig(tile=256, stride=256), grouped=True)
    declared = Declarations.load(path)
    manifest = build([source / "A", source / "B"], tmp_path / "out", config, declarations=declared).manifest
    samples = list(PlaceReader(manifest, "train"))
    assert len(samples) == len(list((source / "A").glob("*.png")))
    for sample in samples:
        assert set(sample.tiles) == {"before", "after"}
        assert (sample.tiles["before"].pixels_CHW != sample.tiles["after"].pixels_CHW).any()
        assert {Path(tile.record.source).name for tile in sample.tiles.values()} == {sample.place}


def test_coded_pixels_are_the_same(folder, shards, tmp_path):
    coded = build([folder], tmp_path / "out", replace(SETTINGS, codec="pco")).manifest
    raw, other = PlaceReader(shards, "train"), PlaceReader(coded, "train")
    assert len(raw) == len(other)
    for one, two in zip(raw, other, strict=True):
        assert (one.key, one.tiles.keys()) == (two.key, two.tiles.keys())
        for name, tile in one.tiles.items():
            assert tile.record == two.tiles[name].record
            np.testing.assert_array_equal(tile.pixels_CHW, two.tiles[name].pixels_CHW)
