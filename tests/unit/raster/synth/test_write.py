"""The folder of scenes: the same bytes from the same settings, whole files only, clear refusals."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from ringmoe.cli.synth import SynthConfig, run
from ringmoe.errors import ConfigError
from ringmoe.modality import get
from ringmoe.raster.synth import SynthSettings, write_scenes
from ringmoe.raster.synth.write import SCENE_FILES

SETTINGS = SynthSettings(seed=5, scenes=2, size=192)


def _hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "scenes"
    assert [scene.reused for scene in write_scenes(out, SETTINGS)] == [False, False]
    return out


def test_the_same_settings_write_the_same_bytes(written, tmp_path):
    list(write_scenes(tmp_path / "again", SETTINGS))
    first, again = _hashes(written), _hashes(tmp_path / "again")
    assert first == again
    assert {name.split("/", 1)[1] for name in first if name.startswith("scene_000")} == set(SCENE_FILES)
    for name in SCENE_FILES:
        assert first[f"scene_000/{name}"] != first[f"scene_001/{name}"], "two scenes of one seed differ"


@pytest.mark.parametrize(
    ("name", "key", "role", "units", "dtype"),
    [
        ("optical.tif", "opt", "scene", "dn", "uint8"),
        ("multispectral.tif", "ms", "scene", "reflectance", "uint16"),
        ("sar_l1.tif", "sar_l1", "scene", "complex", "complex64"),
        ("sar_l2.tif", "sar_l2", "scene", "amplitude", "float32"),
        ("later/optical.tif", "opt", "later", "dn", "uint8"),
        ("later/sar_l1.tif", "sar_l1", "later", "complex", "complex64"),
        ("frames/frame_003.tif", "opt", "frame", "dn", "uint8"),
    ],
)
def test_images_say_what_they_are(written, name, key, role, units, dtype):
    with rasterio.open(written / "scene_000" / name) as image, rasterio.open(written / "scene_000/cover.tif") as cover:
        tags = image.tags()
        assert image.descriptions == get(key).bands
        assert set(image.dtypes) == {dtype}
        assert dtype in get(key).dtypes
        assert units in get(key).units
        assert image.crs == cover.crs
        assert image.crs.is_projected
        assert image.res == (1.0, 1.0)
        if role != "frame":
            assert image.transform == cover.transform
            assert image.shape == (192, 192)
    assert (tags["RINGMOE_MODALITY"], tags["RINGMOE_ROLE"], tags["RINGMOE_UNITS"]) == (key, role, units)
    assert tags["RINGMOE_SYNTHETIC"] == "YES"
    assert tags["SENSOR"] == f"synthetic-{key}"
    assert tags["ACQUIRED"].startswith("2025-06-17T" if role == "later" else "2024-06-18T10:24:0")
    assert tags["TIFFTAG_DATETIME"].replace(":", "")[:8] == tags["ACQUIRED"].replace("-", "")[:8]


@pytest.mark.parametrize("name", ["cover.tif", "height.tif", "later/change.tif"])
def test_labels_are_no_scenes(written, name):
    with rasterio.open(written / "scene_000" / name) as label:
        tags = label.tags()
        values = np.unique(label.read())
    assert tags["RINGMOE_ROLE"] == "label"
    assert tags["RINGMOE_SYNTHETIC"] == "YES"
    assert "RINGMOE_MODALITY" not in tags
    if name != "height.tif":
        assert all(f"{value}=" in tags["LEGEND"] for value in values)


def test_synthetic_stands_everywhere(written):
    assert "SYNTHETIC" in (written / "README.txt").read_text().splitlines()[0]
    assert "--seed 5" in (written / "README.txt").read_text()
    assert json.loads((written / "synth.json").read_text())["synthetic"] is True
    for path in written.rglob("objects.json"):
        assert json.loads(path.read_text())["synthetic"] is True


def test_the_same_call_reuses_and_mends(written):
    before = _hashes(written)
    (written / "scene_001" / "later" / "sar_l2.tif").unlink()
    left = written / "scene_001" / ".optical.tif.99.partial"
    left.write_bytes(b"half")
    assert [scene.reused for scene in write_scenes(written, SETTINGS)] == [True, False]
    assert _hashes(written) == before
    times = {path: path.stat().st_mtime_ns for path in written.rglob("*.tif")}
    assert all(scene.reused for scene in write_scenes(written, SETTINGS))
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*.tif")} == times


def test_other_settings_are_refused(written):
    with pytest.raises(ConfigError, match=r"seed 5 there, 6 asked for"):
        next(write_scenes(written, SynthSettings(seed=6, scenes=2, size=192)))


def test_what_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="not empty"):
        next(write_scenes(tmp_path, SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(ConfigError, match="is a file"):
        next(write_scenes(tmp_path / "holiday.jpg", SETTINGS))


@pytest.mark.parametrize(("wrong", "message"), [({"size": 100}, "at least 192"), ({"scenes": 0}, "1 to 999")])
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        SynthSettings(**{"seed": 0, "scenes": 1, "size": 192, **wrong})


def test_a_full_disk_ends_in_words_and_the_next_call_completes(tmp_path):
    """A limit on the size of files stands in for the disk: the system refuses the write in the same way."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from ringmoe.cli.console import guarded\n"
        "from ringmoe.cli.synth import SynthConfig, run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "sys.exit(guarded(lambda: run(SynthConfig(out=Path(sys.argv[1]), scenes=1, size=192))))"
    )
    failed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "cannot be written" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "out" / "scene_000" / "optical.tif").is_file()
    assert not list((tmp_path / "out").rglob(".*"))
    (scene,) = write_scenes(tmp_path / "out", SynthSettings(seed=0, scenes=1, size=192))
    assert not scene.reused
    assert scene.num_files == len(SCENE_FILES)


def test_the_command_says_what_it_did(written, capsys):
    run(SynthConfig(out=written, scenes=2, size=192, seed=5))
    said = capsys.readouterr().out
    assert "2 synthetic scenes" in said
    assert "0 written, 2 reused" in said
