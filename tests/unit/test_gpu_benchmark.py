"""The program for one CUDA card runs, with tiny sizes, where there is none; and says so where it must not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fixtures.launchers import ROOT, variables


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = ROOT / "benchmarks" / "gpu.py"
    return subprocess.run(
        [sys.executable, program, *arguments],
        env={**variables(), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_everything_is_measured(tmp_path: Path):
    output = tmp_path / "gpu.json"
    options = "--device cpu --rounds 2 --steps 5 --images 4 --lr 1e-3 --output"
    done = _run(*options.split(), str(output))
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())["figures"]
    names = {figure["name"] for figure in figures}
    assert {"matrix rate, bf16", "RMoE layer, share of the matrix rate", "times as fast as DeepSpeed"} <= names
    assert {"seconds of a step", "images a second", "model FLOPs utilisation", "peak memory"} <= names
    for figure in figures:
        low, high = figure["quartiles"]
        assert low <= figure["value"] <= high
    assert [figure["met"] for figure in figures if figure["target"] == "falls"] == [True, True]
    for name in names:
        assert name in done.stdout


def test_without_a_card_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = _run("--parts", "rate")
    assert done.returncode == 1
    assert "no CUDA card is to be seen here" in done.stderr
    done = _run("--device", "cpu")
    assert "name another file with --output" in done.stderr
