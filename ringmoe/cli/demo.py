"""``ringmoe demo``: the whole way once, on synthetic scenes, by the very commands that a user types.

Each step is a command that is shown before it runs. One that was finished is not run again: the demo keeps the command
line of every finished step, and a second call says what it reused.
"""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.table import Table

import ringmoe
from ringmoe.cli.console import console
from ringmoe.errors import RingMoEError
from ringmoe.models import config_from

_PRUNED_MODALITY = "opt"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo, sized for two cores and six minutes.

    Attributes:
        out: Folder for everything that it writes.
        scenes: Synthetic landscapes.
        size: Height and width of each, pixels.
        steps: Optimiser steps; the run is stopped half-way and resumed.
        ranks: Expert-parallel ranks.
        seed: Another seed draws other landscapes and starts from other weights.
    """

    out: Path = Path("demo")
    scenes: int = 6
    size: int = 384
    steps: int = 200
    ranks: int = 2
    seed: int = 0


def run(config: DemoConfig) -> None:
    """Walks the way and prints what came out.

    Raises:
        RingMoEError: A step failed; its own message stands above.
    """
    started = time.monotonic()
    steps = _Steps(config)
    steps.command("1. synthetic scenes", "ringmoe", "synth", steps.scenes, *_options(config, "scenes", "size", "seed"))
    steps.command(
        "2. scenes to shards",
        *("ringmoe", "shards", "build", steps.scenes, steps.shards),
        *("--tile", "96", "--stride", "48", "--holdout", "0.25"),
    )
    steps.train("3. pre-training on expert-parallel ranks, interrupted half-way and resumed")
    steps.command(
        "4. compression: every expert of each block into one FFN (KC)",
        *("ringmoe-prune", steps.run, steps.compressed, "--mode", "kc", "--modality", _PRUNED_MODALITY),
        *("--keep-decoders", "--report", "--shards", steps.shards),
        fresh=steps.compressed,
    )
    before = steps.answer("5. held-out tiles, whole model", *_evaluate(steps.run, steps.shards))
    after = steps.answer("6. held-out tiles, compressed model", *_evaluate(steps.compressed, steps.shards))
    console.rule("what came out")
    console.print(_losses(steps.run, before), _sizes(steps, before, after))
    console.print(_places(steps), markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s, {len(steps.reused)} of {steps.num} steps reused")


class _Steps:
    """Runs the steps that are not finished yet, and remembers those that are."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self.reused: list[str] = []
        self.num = 0
        self.scenes, self.shards = str(config.out / "scenes"), str(config.out / "shards")
        self.run, self.compressed = str(config.out / "run"), str(config.out / f"{_PRUNED_MODALITY}-kc")
        self._done = config.out / "finished"
        self._done.mkdir(parents=True, exist_ok=True)

    def command(self, title: str, *words: str, fresh: str | None = None) -> None:
        """Runs a command whose output is shown; a folder ``fresh`` that it left unfinished is removed before."""
        if self._is_done(title, words) is None:
            if fresh is not None:
                shutil.rmtree(fresh, ignore_errors=True)
            _check(words, subprocess.run(words, env=_environment()).returncode)
            self._finish(title, words, "")

    def answer(self, title: str, *words: str) -> Any:
        """The JSON that a command prints."""
        answer = self._is_done(title, words)
        if answer is None:
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=_environment())
            _check(words, done.returncode)
            answer = done.stdout
            self._finish(title, words, answer)
        return json.loads(answer)

    def train(self, title: str) -> None:
        """Pre-trains: asks the ranks to stop when half of the steps are done, as a cluster does, and starts again."""
        words = _training(self)
        if self._is_done(title, words) is not None:
            return
        half = self.config.steps // 2
        if _last_step(self.run) < half:
            process = subprocess.Popen(words, start_new_session=True, env=_environment())
            try:
                while process.poll() is None and _last_step(self.run) < half:
                    time.sleep(0.2)
                console.print(f"-- interrupting after step {_last_step(self.run)} --", style="bold yellow")
                _ask_to_stop(process)
            finally:
                _interrupt(process)
            console.print("-- the same command again --", style="bold yellow")
        process = subprocess.Popen(words, start_new_session=True, env=_environment())
        try:
            code = process.wait()
        finally:
            _interrupt(process)
        _check(words, code)
        self._finish(title, words, "")

    def _is_done(self, title: str, words: Sequence[str]) -> str | None:
        """What the step printed when it was finished, if it was, with this very command."""
        self.num += 1
        console.rule(title, align="left")
        console.print(f"$ {shlex.join(words)}", style="cyan", markup=False, highlight=False, soft_wrap=True)
        try:
            known = json.loads(self._file(title).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if known["command"] != list(words):
            return None
        console.print("reused: it was finished before")
        self.reused.append(title)
        return str(known["answer"])

    def _finish(self, title: str, words: Sequence[str], answer: str) -> None:
        self._file(title).write_text(json.dumps({"command": list(words), "answer": answer}), encoding="utf-8")

    def _file(self, title: str) -> Path:
        return self._done / f"step-{title.partition('.')[0]}.json"


def _options(config: DemoConfig, *names: str) -> list[str]:
    return [word for name in names for word in (f"--{name}", str(getattr(config, name)))]


def _training(steps: _Steps) -> tuple[str, ...]:
    """The command line of the run."""
    launcher = Path(ringmoe.__file__).resolve().parents[1] / "launcher" / "pretrain.py"
    if not launcher.is_file():
        raise RingMoEError(f"there is no {launcher}: run the demo from a clone of the repository (make demo)")
    config = steps.config
    path = os.path.relpath(launcher)
    every = {"checkpoint": 20, "evaluation": config.steps // 2, "pictures": config.steps // 2}
    return (
        *("deepspeed", "--num_gpus", str(config.ranks), path, "--preset", "tiny"),
        *("--parallel.expert-parallel", str(config.ranks), "--data.shards", steps.shards, "--output", steps.run),
        *("--schedule.steps", str(config.steps), "--schedule.warmup", "20", "--seed", str(config.seed)),
        *(word for name, value in every.items() for word in (f"--every.{name}", str(value))),
    )


def _evaluate(checkpoint: str, shards: str) -> tuple[str, ...]:
    return "ringmoe", "evaluate", checkpoint, "--shards", shards, "--json"


def _environment() -> dict[str, str]:
    """The commands of this environment come first, also where it was not activated."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Sends the ranks of a launcher what a cluster sends before it takes the machine away; they save and end."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if any(word.startswith("--local_rank") for word in child.cmdline()):
            child.terminate()
    process.wait()


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ends a launcher and its ranks as Ctrl-C would, where they have not ended; they have a session of their own."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()


def _check(words: Sequence[str], code: int) -> None:
    if code:
        raise RingMoEError(f"the demo stopped: {words[0]} ended with exit code {code}; its own message stands above")


def _rows(run: str) -> list[dict[str, float]]:
    """The lines of the run's metrics that are whole; numbers that were not finite are NaN."""
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line[-1] == "\n"]
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _last_step(run: str) -> int:
    rows = _rows(run)
    return int(rows[-1]["step"]) if rows else 0


def _losses(run: str, held_out: dict[str, dict[str, float]]) -> Table:
    """Loss of each modality at the first and the last step, and on tiles that were kept out of training."""
    rows = [row for row in _rows(run) if "loss" in row]
    speeds = sorted(row["images_per_second"] for row in rows if "images_per_second" in row)
    table = Table(
        box=box.SIMPLE_HEAD,
        title="training on synthetic scenes",
        caption=f"mean of the first and the last 10 of {len(rows)} steps; {speeds[len(speeds) // 2]:.0f} images/s",
    )
    for name in ("modality", "first", "last", "held out", "visible mean", "ratio"):
        table.add_column(name, justify="left" if name == "modality" else "right")
    for key, result in held_out.items():
        first, last = (sum(row[f"loss/{key}"] for row in part) / len(part) for part in (rows[:10], rows[-10:]))
        numbers = (first, last, result["model"], result["baseline"], result["ratio"])
        table.add_row(key, *(f"{number:.3f}" for number in numbers))
    return table


def _sizes(steps: _Steps, before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> Table:
    """The two models side by side."""
    table = Table(box=box.SIMPLE_HEAD, title=f"compression for {_PRUNED_MODALITY}")
    for name in ("model", "parameters", f"held out, {_PRUNED_MODALITY}"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, folder, results in (
        ("four modalities, all experts", _newest(steps.run), before),
        ("one modality, dense (KC)", Path(steps.compressed), after),
    ):
        contract = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        num_params = config_from(contract, where=str(folder)).num_params()
        table.add_row(name, f"{num_params:,}", f"{results[_PRUNED_MODALITY]['model']:.3f}")
    return table


def _newest(run: str) -> Path:
    checkpoints = Path(run) / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text(encoding="utf-8").strip()


def _places(steps: _Steps) -> str:
    """Where everything lies."""
    places = {
        "pictures": f"{steps.run}/pictures",
        "TensorBoard": f"{steps.run}/tensorboard   (tensorboard --logdir {steps.run}/tensorboard)",
        "checkpoint": str(_newest(steps.run)),
        "compressed": steps.compressed,
        "report": f"{steps.compressed}/report.html   (open it in a browser)",
        "shards": f"{steps.shards}   (ringmoe shards list {steps.shards})",
        "scenes": f"{steps.scenes}   (synthetic: see README.txt there)",
    }
    return "\n".join(f"{name:<12} {place}" for name, place in places.items())
