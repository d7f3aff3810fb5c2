"""What all figures depend on: processor, its rate of matrix products, software."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ringmoe.train.peak import measure_peak

_PACKAGES = ("torch", "deepspeed", "timm", "webdataset", "rasterio")
_TELLING = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}  # instructions that matrix products live on


def facts() -> dict[str, str]:
    """Name to value, in words; the rates are those of one thread."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    rates = {name: measure_peak(cpu, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    return {
        "CPU": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": ", ".join(sorted(_TELLING & set(_cpu("flags").split()))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "matrix rate, one thread": ", ".join(
            f"{1e-9 * rate.flops_per_second:.0f} GFLOP/s {name}" for name, rate in rates.items()
        ),
        "software": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)]
        ),
        "measured": datetime.now(UTC).date().isoformat(),
    }


def cpu_model() -> str:
    """Name of the processor."""
    return _cpu("model name")


def _cpu(field: str) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), platform.processor())
