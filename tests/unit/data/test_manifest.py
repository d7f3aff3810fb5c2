import hashlib
import json
import time
from dataclasses import replace

import numpy as np
import pytest

from ringmoe import modality as registry
from ringmoe.data.entries import ExamplesEntry, ModalityEntry, SceneEntry, ShardEntry, SplitEntry
from ringmoe.data.layout import BUILDING, INDEX_DTYPE
from ringmoe.data.manifest import Manifest
from ringmoe.data.storage import FileEntry, LocalFolder
from ringmoe.data.writer import npy_bytes
from ringmoe.errors import ShardError


def _edit(root, change):
    path = root / "manifest.json"
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


def test_it_says_what_the_folder_holds(shards):
    assert list(shards.modalities) == ["opt", "ms", "sar_l1", "sar_l2"]
    for key, entry in shards.modalities.items():
        assert entry.spec == registry.get(key)
        assert entry.tile == 16
        assert entry.candidates == entry.num_kept + sum(entry.dropped.values())
        assert sum(sum(group.tiles.values()) for group in entry.groups) == entry.num_kept
        for split, samples in entry.splits.items():
            index = shards.open_index(key, split)
            assert len(index) == samples.num_samples
            assert index["row"].max() < 64
    assert [fault for _, fault in shards.verify()] == [None] * len(shards.all_files)
    again = Manifest.open(shards.root)
    assert again == shards
    assert again.fingerprint == shards.fingerprint


def test_statistics_are_those_of_the_tiles_that_train(shards):
    """The scenes are known, so the statistics can be taken from them directly."""
    generator = np.random.default_rng(2)  # the scene of ms has number 2 in the archive
    pixels = generator.integers(1, 200, (4, 64, 72)).astype("uint8")
    border = 48  # a quarter of 64 rows is held out
    windows = [
        pixels[:, row : row + 16, col : col + 16] for row in range(0, border - 15, 8) for col in range(0, 72 - 15, 8)
    ]
    (group,) = shards.modalities["ms"].groups
    assert group.tiles["train"] == len(windows)
    stacked = np.stack(windows).astype(np.float64)
    for channel, statistics in enumerate(group.group.channels):
        assert statistics.count == stacked[:, channel].size
        assert statistics.mean == pytest.approx(stacked[:, channel].mean(), rel=1e-12)
        assert statistics.std == pytest.approx(stacked[:, channel].std(), rel=1e-12)
        assert statistics.percentiles[2] == np.percentile(stacked[:, channel], 50, method="inverted_cdf")


def test_folders_without_a_manifest_are_told_apart(tmp_path):
    with pytest.raises(ShardError, match="does not exist"):
        Manifest.open(tmp_path / "none")
    with pytest.raises(ShardError, match=r"no manifest\.json"):
        Manifest.open(tmp_path)
    (tmp_path / BUILDING).mkdir()
    with pytest.raises(ShardError, match="unfinished build: run the same"):
        Manifest.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format=99), "has format 99; this version reads 2"),
        (lambda values: values.pop("format"), "has format None"),
        (lambda values: values.pop("quarantined"), "quarantined"),
        (lambda values: values["modalities"]["opt"].update(surprise=1), "surprise"),
        (lambda values: values["modalities"]["opt"].update(candidates=1), "1 windows of opt are not"),
        (
            lambda values: values["modalities"]["opt"]["spec"].update(bands=["B", "G", "R"]),
            "B, G, R; now they are R, G, B",
        ),
        (lambda values: values["modalities"]["opt"]["statistics"].update(name="../../secret"), "'../../secret' stands"),
        (
            lambda values: values["modalities"]["opt"]["splits"]["train"]["shards"][1].update(name="/etc/passwd"),
            "'/etc/passwd' stands where 'opt/train-000001.tar'",
        ),
        (
            lambda values: values["modalities"]["opt"]["examples"]["tiles"][0].update(scene=7),
            "an example is of no scene",
        ),
        (
            lambda values: values["modalities"]["opt"]["examples"]["tiles"][0].update(scene=-1),
            "an example is of no scene",
        ),
        (
            lambda values: values["modalities"]["opt"]["splits"]["train"]["shards"][0].update(samples="many"),
            r"shards\[0\]\.samples is 'many'",
        ),
    ],
)
def test_damaged_manifests_are_refused_in_words(own_shards, change, message):
    root = own_shards()
    _edit(root, change)
    with pytest.raises(ShardError, match=message):
        Manifest.open(root)


def test_a_manifest_that_is_no_json_is_refused(own_shards):
    root = own_shards()
    (root / "manifest.json").write_text("{'a")
    with pytest.raises(ShardError, match="is damaged"):
        Manifest.open(root)


def test_verify_names_what_changed(own_shards):
    root = own_shards()
    with (root / "opt/train-000001.tar").open("r+b") as file:
        file.seek(3000)
        file.write(b"!")
    (root / "ms/val.index.npy").unlink()
    with (root / "sar_l2/statistics.json").open("ab") as file:
        file.write(b" ")
    wrong = {entry.name: fault for entry, fault in Manifest.open(root).verify() if fault}
    assert wrong.keys() == {"opt/train-000001.tar", "ms/val.index.npy", "sar_l2/statistics.json"}
    assert "checksum" in wrong["opt/train-000001.tar"]
    assert "cannot be read" in wrong["ms/val.index.npy"]
    assert "bytes, not" in wrong["sar_l2/statistics.json"]


def test_pictures_that_nobody_speaks_of_are_refused(own_shards):
    root = own_shards()
    _edit(root, lambda values: values["modalities"]["opt"]["examples"]["tiles"].pop())
    manifest = Manifest.open(root)
    with pytest.raises(ShardError, match=r"opt/examples\.npy holds an array .* shape \(12, .* shape \(11, 1 to 3"):
        manifest.load_pictures("opt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy_bytes(np.zeros((2, 4, 2)))[:-1],
        npy_bytes(np.zeros((2, 4, 2), "int64")),
        npy_bytes(np.zeros((2, 4, 3))),
        npy_bytes(np.zeros((2, 8))),
        npy_bytes(np.array(2.0)),
        npy_bytes(np.zeros((2, 4, 2))).replace(b"(2, 4, 2)", b"(2, 4,'2)"),
    ],
)
def test_arrays_that_are_none_are_refused_with_their_file(own_shards, content):
    """Their checksum is the manifest's."""
    root = own_shards()
    (root / "opt/footprints.npy").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    _edit(root, lambda values: values["modalities"]["opt"]["footprints"].update(sha256=digest, bytes=len(content)))
    with pytest.raises(ShardError, match=r"opt/footprints\.npy holds "):
        Manifest.open(root).load_footprints("opt")


def test_an_index_that_does_not_fit_is_refused(own_shards):
    manifest = Manifest.open(own_shards())
    path = manifest.root / "opt/train.index.npy"
    index = np.load(path)
    for content in (index[:-1], np.zeros(len(index)), np.array([object()])):
        np.save(path, content)
        with pytest.raises(ShardError, match=r"opt/train\.index\.npy: the member index"):
            manifest.open_index("opt", "train")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ShardError, match="cannot be read"):
        manifest.open_index("opt", "train")


def test_forty_thousand_shards_of_four_hundred_million_samples_open_quickly(tmp_path):
    file = FileEntry(name="opt/train.index.npy", bytes=1, sha256="0" * 64)
    many = range(40_000)
    entry = ModalityEntry(
        spec=registry.OPT,
        tile=192,
        scenes=tuple(SceneEntry(name=f"{i}.tif", slug=f"{i}", digest="0" * 64, synthetic=False) for i in many),
        candidates=400_000_000,
        dropped={},
        groups=(),
        splits={
            "train": SplitEntry(
                shards=tuple(
                    ShardEntry(name=f"opt/train-{i:06d}.tar", bytes=10**9, sha256="0" * 64, samples=10_000)
                    for i in many
                ),
                index=file,
            )
        },
        statistics=replace(file, name="opt/statistics.json"),
        footprints=replace(file, name="opt/footprints.npy"),
        examples=ExamplesEntry(name="opt/examples.npy", bytes=1, sha256="0" * 64, tiles=()),
    )
    Manifest(settings={}, modalities={"opt": entry}, refused=(), quarantined=(), folder=LocalFolder(tmp_path)).save()
    (tmp_path / "opt").mkdir()
    with (tmp_path / file.name).open("wb") as index:
        header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (400_000_000,)}
        np.lib.format.write_array_header_1_0(index, header)
        index.truncate(index.tell() + 400_000_000 * INDEX_DTYPE.itemsize)  # a file of holes
    start = time.process_time()
    manifest = Manifest.open(tmp_path)
    assert manifest.open_index("opt", "train")[-1]["offset"] == 0
    assert time.process_time() - start < 4  # about 0.8 on an idle core
