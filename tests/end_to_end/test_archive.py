"""From an archive to a model by the documented commands: plan, build, inspect, train; every window is counted."""

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from ringmoe.data.manifest import Manifest
from ringmoe.testing.ranks import free_port
from tests.fixtures.jobs import BIN, ROOT
from tests.fixtures.launchers import variables
from tests.fixtures.small_run import rows_of

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1500)]

REAL_FOLDERS = ("optical", "multispectral", "sar_l1", "sar_l2", "paired_s1s2")
CUT = ("--tile", "96", "--stride", "64", "--holdout", "0.25")
TRAIN = ("--preset", "tiny", "--schedule.steps", "4", "--schedule.warmup", "2", "--every.log", "1")


def _call(program: str, *words: object) -> str:
    """Runs a program of this environment to its end; what it printed."""
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(BIN / program), *map(str, words)],
        env=os.environ | variables() | {"PATH": path, "COLUMNS": "200"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _walk(scenes: list[Path], folder: Path, *options: object) -> tuple[dict[str, object], Manifest, str]:
    """Plan, build, inspect, train; what was planned, the shards, and the page."""
    planned = json.loads(
        _call("ringmoe", "shards", "plan", *scenes, "--json", "--tile", "96", "--stride", "64", *options)
    )
    shards = folder / "shards"
    _call("ringmoe", "shards", "build", *scenes, shards, *CUT, "--workers", 2, *options)
    _call("ringmoe", "shards", "inspect", shards)
    launcher = ROOT / "launcher" / "pretrain.py"
    port = f"--master_port={free_port()}"
    _call("deepspeed", "--num_gpus=1", port, launcher, *TRAIN, "--data.shards", shards, "--output", folder / "run")
    assert [row["step"] for row in rows_of(folder / "run") if "loss" in row or "lr" in row][-1] == 4
    return planned, Manifest.open(shards), (shards / "inspect.html").read_text(encoding="utf-8")


def _check_account(planned: dict[str, object], manifest: Manifest, page: str) -> None:
    """From the headers of the scenes to the page: the tables add up to the last window."""
    broken = {scene.name for scene in manifest.quarantined}
    windows: Counter[str] = Counter()
    for scene in planned["scenes"]:
        windows[scene["modality"]] += scene["tiles"] * (scene["name"] not in broken)
    assert windows == {key: entry.candidates for key, entry in manifest.modalities.items()}
    assert Counter(file["code"] for file in planned["refused"]) == Counter(file.code for file in manifest.refused)
    for key, entry in manifest.modalities.items():
        cells = re.findall(rf'data-modality="{key}" data-(kept|reason)="(\w+)" data-count="(\d+)"', page)
        counts = {name: int(num) for _, name, num in cells}
        kept = {split: samples.num_samples for split, samples in entry.splits.items()}
        assert {name: num for name, num in counts.items() if num} == kept | entry.dropped
        assert sum(counts.values()) == windows[key]
        for split in entry.splits:
            assert len(manifest.open_index(key, split)) == kept[split]
        assert sum(sum(group.tiles.values()) for group in entry.groups) == entry.num_kept
        for reason in entry.dropped:
            assert f'data-sheet="{key}/{reason}" data-total="{entry.dropped[reason]}"' in page
    assert [fault for _, fault in manifest.verify()] == [None] * len(manifest.all_files)


def test_an_archive_of_two_hundred_acquisitions(tmp_path):
    _call("ringmoe", "synth", "archive", tmp_path / "archive", "--scenes", 200)
    planned, manifest, page = _walk([tmp_path / "archive"], tmp_path)
    _check_account(planned, manifest, page)
    assert len(planned["scenes"]) >= 200
    assert len({scene["sensor"] for scene in planned["scenes"]}) >= 12
    assert len(manifest.quarantined) == 11
    assert {file.code for file in manifest.refused} == {"label", "ambiguous_bands", "too_small", "unreadable", "format"}
    assert all(scene.synthetic for entry in manifest.modalities.values() for scene in entry.scenes)
    reasons = Counter(reason for entry in manifest.modalities.values() for reason in entry.dropped)
    assert {"split_border", "black_border", "non_finite", "constant"} <= reasons.keys()


def test_the_real_scenes(real_data, tmp_path):
    declared = ROOT / "docs" / "examples" / "scenes.yaml"
    planned, manifest, page = _walk([real_data / name for name in REAL_FOLDERS], tmp_path, "--declarations", declared)
    _check_account(planned, manifest, page)
    assert list(manifest.modalities) == ["opt", "ms", "sar_l1", "sar_l2"]
    assert not manifest.quarantined
