"""Pre-trains ``tiny`` on a folder of real scenes and judges it on tiles that were kept out of training.

    python benchmarks/real_scenes.py ../shared/data runs/real

The folder holds ``optical``, ``multispectral``, ``sar_l1`` and ``sar_l2``. Shards are built once; every seed is a run
of two expert-parallel ranks through the ``deepspeed`` launcher, sized for ten minutes on two cores. For each modality
the table gives the masked squared error on held-out tiles as a share of that of predicting the tile's visible mean,
with the mean and the range over the seeds. An interrupted call continues.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ringmoe.report.canvas import save_png
from ringmoe.report.curves import curves_figure, read_rows

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
FOLDERS = ("optical", "multispectral", "sar_l1", "sar_l2")


def main() -> None:
    """Builds, trains every seed, evaluates, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    args.data, args.out = args.data.resolve(), args.out.resolve()  # the programs run from the project's root
    shards = args.out / "shards"
    _call(
        *("ringmoe", "shards", "build", *(args.data / name for name in FOLDERS), shards),
        *("--tile", 96, "--stride", 32, "--holdout", 0.2),
        *("--max-saturated", 1, "--no-drop-striped", "--max-cloud", 1),  # of a few scenes every tile counts
        *("--declarations", ROOT / "docs" / "examples" / "scenes.yaml"),
    )
    results = [_seed(args.out / f"seed-{seed}", shards, seed, args.steps) for seed in range(args.seeds)]
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = read_rows(args.out / "seed-0" / "metrics.jsonl")
    save_png(curves_figure(rows, title="tiny on real scenes, seed 0"), args.out / "curves.png")
    Console().print(_table(results))


def _seed(run: Path, shards: Path, seed: int, steps: int) -> dict[str, Any]:
    """One run and its result; a finished one is read back."""
    answer = run / "held-out.json"
    if not answer.exists():
        started = time.monotonic()
        _call(
            *("deepspeed", "--num_gpus", 2, ROOT / "launcher" / "pretrain.py", "--preset", "tiny", "--seed", seed),
            *("--data.shards", shards, "--output", run, "--parallel.expert-parallel", 2, "--schedule.steps", steps),
        )
        seconds = time.monotonic() - started
        every_tile = ("--tiles", 1_000_000, "--masks", 8)
        text = _call("ringmoe", "evaluate", run, "--shards", shards, "--json", *every_tile, capture=True)
        answer.write_text(
            json.dumps({"seed": seed, "seconds": seconds, "held_out": json.loads(text)}), encoding="utf-8"
        )
    result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result


def _call(program: str, *words: object, capture: bool = False) -> str:
    """Runs a program of this environment; ends this one where it fails."""
    command = [str(BIN / program), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode:
        sys.exit(f"{program} ended with exit code {done.returncode}")
    return done.stdout or ""


def _table(results: list[dict[str, Any]]) -> Table:
    """Per modality the errors and the ratio over the seeds."""
    seconds = max(result["seconds"] for result in results)
    table = Table(title=f"held-out masked error, {len(results)} seeds, at most {seconds:.0f} s of training each")
    for name in ("modality", "tiles", "model", "visible mean", "ratio", "lowest", "highest"):
        table.add_column(name, justify="left" if name == "modality" else "right")
    for key, first in results[0]["held_out"].items():
        found = [result["held_out"][key] for result in results]
        ratios = [each["ratio"] for each in found]
        model, baseline = (sum(each[name] for each in found) / len(found) for name in ("model", "baseline"))
        numbers = (model, baseline, sum(ratios) / len(ratios), min(ratios), max(ratios))
        table.add_row(key, str(first["num_tiles"]), *(f"{number:.4f}" for number in numbers))
    return table


if __name__ == "__main__":
    main()
