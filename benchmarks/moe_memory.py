"""Memory that forward and backward of one RMoE layer take, with hidden values kept or computed again, and DeepSpeed's.

    python benchmarks/moe_memory.py

Each contestant has a fresh process and glibc's own ways with freed memory. Counted is how far the most resident memory
of a step (VmHWM) lies above what was resident before it: activations, workspaces and the gradients of all weights. What
recomputing costs in time is measured in turns.
"""

import ctypes
import gc
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from contestants import Cell, peers, seat
from harness import Found, Seats, claim, collect, one_thread, progress

FAMILY = "Memory of the RMoE layer"
CELL = Cell("fp32", 256, 16384)


def peak_mb(way: str, cell: Cell) -> float:
    """Megabytes (10^6) by which resident memory grows in a step, in a process that does nothing else."""
    one_thread(keep_memory=False)
    seat(Cell(cell.dtype, 32, 64), way).step()  # loads code
    contestant = seat(cell, way)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what there is now
    before = _status("VmRSS")
    contestant.step()
    return (_status("VmHWM") - before) * 1024 / 1e6


def claims() -> Iterator[Found]:
    """All claims of the family."""
    setting, ways = str(CELL), peers("recomputed")
    peaks: dict[str, list[float]] = {}
    for way in progress(ways, FAMILY):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            peaks[way] = [alone.submit(peak_mb, way, CELL).result()]
    if "DeepSpeed" in peaks:
        yield claim("ours / DeepSpeed", setting, peaks["ours"], peaks["DeepSpeed"], unit="MB")
        again = f"{setting}, recomputed"
        yield claim("ours / DeepSpeed", again, peaks["recomputed"], peaks["DeepSpeed"], "<= 0.25", unit="MB")
    with Seats() as seats:
        seconds = seats.take_turns({way: partial(seat, CELL, way) for way in ("ours", "recomputed")}, 5)
    yield claim("ours, recomputed / kept", setting, seconds["recomputed"], seconds["ours"], "<= 1.2")


def _status(name: str) -> int:
    """A line of the process's status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    collect(claims())
