"""Compression at full size: truncation beside torch's SVD, and every mode on a checkpoint of 14.7 billion parameters.

    python benchmarks/compression.py                      # one matrix of each stage beside torch.linalg.svd
    python benchmarks/compression.py --folder /data/14b   # and init, kc, ks, ka, ep, extract there; 45 GB of disk

Figures go to ``benchmarks/results/compression.json`` and into the tables of ``docs/compression.md``, each as soon as it
is measured; results are deleted once they are measured, and the checkpoint, which ``ringmoe init`` makes, stays for the
next time. The peer truncates by ``torch.linalg.svd`` in float32, the optimum comes from float64.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import page
import torch
import tyro
from harness import CONSOLE
from machine import facts
from torch import Tensor

from ringmoe.checkpoint.disk import readable_size, require_space
from ringmoe.models.ringmoe.presets import ringmoe_14b
from ringmoe.moe.usage import Usage

PRESET = "ringmoe-14b"
MODEL = ringmoe_14b()
NUM_EXPERTS = 4  # of a family, which share the rank of a matrix
SPECTRA = {"as initialised": 0.0, "singular values i^-0.5": 0.5, "singular values i^-1": 1.0}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        folder: Where the checkpoint lies or is made, and the results appear; without it one matrix of each stage alone.
        modes: Modes of ringmoe-prune.
        widths: Widths of the stages whose truncation is measured; all of the model if none is named.
    """

    folder: Path | None = None
    modes: tuple[str, ...] = ("kc", "ks", "ka", "ep", "extract")
    widths: tuple[int, ...] = MODEL.dims


@dataclass(frozen=True)
class Run:
    """What a command took.

    Attributes:
        wall_s: Seconds by the clock.
        cpu_s: Seconds of all its processes on a core.
        peak_gib: Most memory that all its processes held together, shared pages counted once (PSS).
        disk_read_gb: What came from the disk and not from the memory that caches it.
        load: Processes that were ready to run on the machine when it ended, one minute's mean.
    """

    wall_s: float
    cpu_s: float
    peak_gib: float
    disk_read_gb: float
    load: float


def observed(command: list[str], log: Path) -> Run:
    """Runs a command and looks at its processes twice a second."""
    begun, peak = time.monotonic(), 0
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, sum(map(_pss, _tree(process.pid))))
            time.sleep(0.5)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()}")
    return Run(
        wall_s=round(time.monotonic() - begun, 1),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 1),
        peak_gib=round(peak / 2**20, 2),
        disk_read_gb=round(usage.ru_inblock * 512 / 1e9, 2),
        load=round(os.getloadavg()[0], 1),
    )


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _text(children).split():
            yield from _tree(int(child))


def _pss(pid: int) -> int:
    """Kilobytes of a process, shared pages divided among those who share them; 0 once it has ended."""
    lines = (line.split() for line in _text(Path(f"/proc/{pid}/smaps_rollup")).splitlines())
    return next((int(words[1]) for words in lines if words[0] == "Pss:"), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def weights(width: int, power: float) -> Tensor:
    """W_1 of one expert in bfloat16: random, or with singular values i^-power."""
    generator = torch.Generator().manual_seed(width)
    w_DF = torch.randn(width, 4 * width, generator=generator) * 0.02
    if power:
        left, _, right = torch.linalg.svd(w_DF[:, :width])  # any orthogonal matrices
        values = torch.arange(1, width + 1) ** -power
        w_DF = torch.cat([(left * values) @ right.roll(turn, 0) / 2 for turn in range(4)], dim=1)
    return w_DF.bfloat16()


def truncations(widths: tuple[int, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time beside the SVD's, and error beside the optimum, of one matrix of each stage."""
    # after the thread counts are set: SciPy's library reads them when it is loaded
    from ringmoe.compress import kc

    kc.truncate(weights(256, 0.0), 64)  # what is loaded with the first call
    for width in widths:
        for spectrum, power in SPECTRA.items():
            w_DF, k = weights(width, power), width // NUM_EXPERTS
            begun = time.process_time()
            low = kc.truncate(w_DF, k)
            _ = low.matrix
            ours = time.process_time() - begun
            w64_DF = w_DF.double()
            values_S = torch.linalg.eigvalsh(w64_DF @ w64_DF.T)
            optimum = sqrt(values_S[:-k].sum().item())
            excess = torch.linalg.norm(w64_DF - low.matrix.double()).item() / optimum - 1
            found: dict[str, Any] = {
                "excess": excess,
                "certified": low.excess,
                "precision": str(low.left_DK.dtype).removeprefix("torch."),
                "cpu_s": ours,
                "load": round(os.getloadavg()[0], 1),
            }
            del w64_DF, low
            if not power:
                found["svd_cpu_s"] = _svd_seconds(w_DF, k)
                found["svd_over_ours"] = found["svd_cpu_s"] / ours
            yield f"{width} x {4 * width}, {spectrum}", found


def _svd_seconds(w_DF: Tensor, k: int) -> float:
    begun = time.process_time()
    left, values, right = torch.linalg.svd(w_DF.float(), full_matrices=False)
    _ = (left[:, :k] * values[:k]) @ right[:k]
    return time.process_time() - begun


def runs(folder: Path, modes: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole model through every mode."""
    source, log = folder / PRESET, folder / "output.txt"
    config = MODEL
    need = 2 * (config.for_modalities(config.modalities[:1]).num_params() if "extract" in modes else 2**30)
    need += 0 if source.exists() else 2 * config.num_params()
    CONSOLE.print(f"{readable_size(need * 1.01)} are needed in {folder}", highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, int(need * 1.01))
    bin_ = Path(sys.executable).parent
    if not source.exists():
        yield "init", asdict(observed([f"{bin_}/ringmoe", "init", str(source), "--preset", PRESET], log))
    usage = folder / "usage.json"
    layer = (10,) * config.num_routed
    counted = ((layer,) * len(config.modalities),) * config.num_blocks
    Usage(
        modalities=config.modalities,
        num_specialised=config.num_specialised,
        counts=counted,
        tokens=((40,) * len(config.modalities),) * config.num_blocks,
        source="even counts, made up for a model without training",
    ).save(usage)
    for mode in modes:
        out = folder / mode
        words = [f"{bin_}/ringmoe-prune", str(source), str(out), "--mode", mode, "--modality", config.modalities[0]]
        run = observed([*words, *(["--usage", str(usage)] if mode == "ep" else [])], log)
        size = sum(path.stat().st_size for path in out.iterdir())
        merges = json.loads((out / "compression.json").read_text())["merges"].values()
        excess = max((merge["excess"] for merge in merges), default=0)
        yield mode, {**asdict(run), "result_gb": round(size / 1e9, 2), "certified": excess}
        shutil.rmtree(out)


def keep(key: str, found: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Prints figures as they come and writes each down beside those of earlier times."""
    results = json.loads(page.COMPRESSION.read_text(encoding="utf-8")) if page.COMPRESSION.exists() else {}
    results["machine"] = facts()
    for name, values in found:
        CONSOLE.print(name, values, highlight=False)
        results.setdefault(key, {})[name] = values
        page.COMPRESSION.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        page.write()


def main(settings: Settings) -> None:
    """Measures one matrix after the other on one thread, then whole models on all cores."""
    if settings.folder is not None:
        keep("runs", runs(settings.folder, settings.modes))
    torch.set_num_threads(1)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    keep("truncation", truncations(settings.widths))


if __name__ == "__main__":
    main(tyro.cli(Settings))
