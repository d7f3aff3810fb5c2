"""How long a checkpoint keeps training waiting: written while it waits, and written beside it.

    python benchmarks/saving.py

Two expert-parallel ranks (gloo), a thread each, save the model in turns, A B A B, on one disk: how long the slower
rank's call takes. Both write the same files through to the disk. Beside training, the copies that are made in the call
are all that is waited for; each turn then waits, unmeasured, until the checkpoint is complete.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from harness import Claim, claim, collect

from ringmoe.checkpoint.runs import Kept
from ringmoe.checkpoint.saver import Saver
from ringmoe.checkpoint.state import TrainerState
from ringmoe.distributed.launch import start
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.build import build_model_and_engine
from ringmoe.train.presets import preset

FAMILY = "Saving"
_PRESETS = {"tiny": 15, "small": 7}  # turns of each, for the smaller one's times scatter more
_WAYS = {"waiting": False, "beside": True}


def times(name: str, turns: int, folder: Path) -> dict[str, list[float]]:
    """Seconds that the calls took in every turn, on a rank; beside training also until the checkpoint was complete."""
    config = preset(name)
    world = start()
    torch.set_num_threads(1)
    _, engine = build_model_and_engine(replace(config, parallel=replace(config.parallel, expert_parallel=2)), world)
    savers = {way: Saver(folder / way, Kept(last=1), beside=beside) for way, beside in _WAYS.items()}
    seconds: dict[str, list[float]] = {way: [] for way in (*_WAYS, "complete")}
    for turn in range(turns + 1):
        for way, saver in savers.items():
            dist.barrier()
            begun = time.perf_counter()
            saver.save(engine, TrainerState(step=turn, seed=0, data_fingerprint=""), config={})
            seconds[way].append(time.perf_counter() - begun)
            saver.wait()
            if way == "beside":
                seconds["complete"].append(time.perf_counter() - begun)
    return {way: of_turns[1:] for way, of_turns in seconds.items()}


def claims() -> Iterator[Claim]:
    """Both ways to save, of each model."""
    for name, turns in _PRESETS.items():
        folder = Path(tempfile.mkdtemp(prefix="saving-"))
        try:
            of_ranks = run_ranks(times, 2, name, turns, folder, init=False, timeout=600)
            num_bytes = sum(file.stat().st_size for file in folder.glob("beside/checkpoints/step-*/*"))
        finally:
            shutil.rmtree(folder)
        slower = {
            way: [max(pair) for pair in zip(*(each[way] for each in of_ranks), strict=True)] for way in of_ranks[0]
        }
        setting = f"{name}, {num_bytes / 1e6:.0f} MB on two ranks"
        yield claim("ours / waiting", setting, slower["beside"], slower["waiting"], "<= 0.2")
        yield claim("complete / waiting", setting, slower["waiting"], slower["complete"])


if __name__ == "__main__":
    collect(claims())
