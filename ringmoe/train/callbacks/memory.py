"""How much memory the run has needed so far."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ringmoe.train.callbacks.base import Callback

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

_GIB = 1 << 30


class Memory(Callback):
    """Records the most that any rank has held at once since it started.

    ``memory_gib/host`` is the resident memory of the process, and ``memory_gib/gpu``, where there is one, what tensors
    took there, both in GiB.
    """

    def before_flush(self, trainer: "Trainer") -> None:
        """Asks the system and the allocator."""
        trainer.metrics.record_all("memory_gib/host", peak_resident_bytes() / _GIB, "max")
        if trainer.world.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(trainer.world.device)
            trainer.metrics.record_all("memory_gib/gpu", peak / _GIB, "max")


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident, as Linux counts it."""
    # getrusage would begin with the size of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="ascii")
    numbers = dict(line.split(":", 1) for line in status.splitlines())
    most = numbers.get("VmHWM") or numbers["VmRSS"]  # some sandboxes do not keep the most
    return 1024 * int(most.split()[0])
