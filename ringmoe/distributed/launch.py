"""Starting and ending a rank, whatever started it, so that no rank ever waits for one that is gone.

A launcher file is ``sys.exit(guarded(main))`` with a ``main`` that calls ``start`` first. Nothing is compiled at the
start and nothing is left behind at the end.
"""

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ringmoe.distributed.environment import Launcher, Place, find_place, num_threads
from ringmoe.errors import ConfigError, RingMoEError
from ringmoe.faults import point

# what glibc's mallopt calls the options
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_LAUNCHERS = frozenset({b"deepspeed", b"ds", b"torchrun", b"mpirun", b"mpiexec"})


@dataclass(frozen=True, kw_only=True)
class World:
    """The job as one rank sees it.

    Attributes:
        rank: Number of this process in the job.
        local_rank: Number of this process on its machine.
        size: Processes of the job.
        launcher: What started them.
        device: Where this rank computes.
    """

    rank: int
    local_rank: int
    size: int
    launcher: Launcher
    device: torch.device


def device_type() -> str:
    """``cuda`` where there is a GPU, else ``cpu``; DS_ACCELERATOR in the environment overrules it."""
    return os.environ.get("DS_ACCELERATOR") or ("cuda" if torch.cuda.is_available() else "cpu")


def start(timeout: timedelta = timedelta(minutes=30)) -> World:
    """Finds the other ranks and meets them, settles threads and memory, and ties this rank to its launcher's life.

    Args:
        timeout: How long a rank waits for the others in one exchange.

    Raises:
        ConfigError: The environment is incomplete or contradicts itself, or there are fewer GPUs than ranks.
    """
    point("start")
    place = find_place(os.environ)
    device = _device(place)
    os.environ.update(place.variables())  # DeepSpeed and torch read them there
    follow_launcher(place.launcher)
    threads = num_threads(place, os.environ, len(os.sched_getaffinity(0)))
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # from which DeepSpeed takes the GPU
    else:
        _keep_freed_memory()
    point("meet")
    if not dist.is_initialized():
        _meet(place, device, timeout)
    return World(rank=place.rank, local_rank=place.local_rank, size=place.size, launcher=place.launcher, device=device)


def stop() -> None:
    """Takes the process groups down. Does nothing where there are none."""
    if not dist.is_initialized():
        return
    engine_groups = sys.modules.get("deepspeed.comm")
    if engine_groups is not None and engine_groups.is_initialized():
        # DeepSpeed keeps groups of its own; a later start in this process must not find these
        engine_groups.destroy_process_group()
    else:
        dist.destroy_process_group()


def guarded(main: Callable[[], None]) -> int:
    """Runs a launcher file's main and sees to it that the whole job ends when this rank fails.

    With several ranks a failing one leaves at once, without Python's farewell, in which threads of the process groups
    may wait for ranks that wait for this one. Launchers end the others when they see its exit code.

    Returns:
        0 when it went well, 2 for an error that the user can mend (printed without a traceback), 130 when interrupted,
        else what the program asked for, or 1.
    """
    try:
        main()
        stop()
        return 0
    except RingMoEError as error:
        return _fail(2, f"error: {error}")
    except KeyboardInterrupt:
        return _fail(130, "interrupted; the same command continues")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return _fail(code, error.code if isinstance(error.code, str) else "") if code else 0
    except BaseException:
        return _fail(1, traceback.format_exc().rstrip())


def _fail(code: int, message: str) -> int:
    several = dist.is_initialized() and dist.get_world_size() > 1
    with suppress(OSError):  # whoever read the output may be gone already
        if message:
            print(f"[rank {dist.get_rank()}] {message}" if several else message, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    if several:
        os._exit(code)
    return code


def _device(place: Place) -> torch.device:
    if device_type() == "cpu":
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    # Slurm may show each task its own GPU alone, which is then number 0 for all of them
    index = 0 if num_gpus == 1 and place.launcher == "slurm" else place.local_rank
    if index >= num_gpus:
        raise ConfigError(
            f"local rank {place.local_rank} has no GPU, this machine shows {num_gpus}: start at most one rank for each "
            "GPU, or set DS_ACCELERATOR=cpu"
        )
    return torch.device("cuda", index)


def _meet(place: Place, device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.size == 1:
        # needs no port, so any number of single processes can run side by side
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        return
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise ConfigError(
            f"rank {place.rank} of {place.size} did not meet the others at {place.address}:{place.port}: {error}; is "
            "the port taken by another job (name another with MASTER_PORT or the launcher's option), or the host not "
            "to be reached?"
        ) from error


def _keep_freed_memory() -> None:
    """Has the allocator keep large freed blocks for the next step instead of returning them to the kernel.

    Tensors of more than 32 MB would otherwise be mapped, cleared page by page and unmapped in every operation, which
    costs several times the operation itself on a CPU. The price is memory: some blocks of each large size stay unused.
    Whoever sets glibc's MALLOC_MMAP_MAX_ has chosen already.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None and "MALLOC_MMAP_MAX_" not in os.environ:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def follow_launcher(launcher: Launcher, interval: float = 0.5, grace: float = 60.0) -> None:
    """Ends this rank when what started it is gone, which would leave it an orphan that holds cores, GPU and port.

    SIGTERM comes first, so that a handler may save; a rank that is still there after ``grace`` seconds is killed.
    """
    if launcher in ("none", "variables"):
        return  # whoever started it, a shell perhaps, may end before it
    watched = _launchers_above(os.getpid())
    is_orphan = _is_orphan(launcher, watched)

    def watch() -> None:
        while not is_orphan and all(_parent_of(child) == parent for child, parent in watched.items()):
            time.sleep(interval)
        with suppress(OSError):  # the launcher may have been the reader of this output
            print(f"process {os.getpid()}: the {launcher} launcher is gone, ending", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow-launcher", daemon=True).start()


def _launchers_above(process: int) -> dict[int, int]:
    """Parents by their children, from this process up to the outermost launcher.

    ``deepspeed`` starts one process for each machine, which starts the ranks, and passes no signal on to it.
    """
    parents = {process: _parent_of(process)}
    while _is_launcher(above := _parent_of(parents[process])):
        process = parents[process]
        parents[process] = above
    return parents


def _is_orphan(launcher: Launcher, parents: Mapping[int, int]) -> bool:
    """Whether the launcher was gone already when this rank, busy with its imports until then, looked for it.

    In doubt it was not: an orphan costs time, a healthy rank that ends costs the run.
    """
    if launcher == "slurm":
        return False  # it ends its tasks itself
    outermost = list(parents.values())[-1]
    if launcher == "deepspeed" and outermost > 1 and not _is_launcher(outermost):
        outermost = _parent_of(outermost)  # that of the machine may have lost the one of the job
    if outermost == 1 and launcher not in ("deepspeed", "torchrun"):
        return False  # mpirun may have started a container around each rank, whose first process is its parent
    return _takes_orphans_in(outermost)


def _takes_orphans_in(process: int) -> bool:
    """Whether a process is the system's first or one of systemd's, unless that is a launcher itself."""
    if process == 0:
        return False  # it lies outside of this container
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's and hidden; a launcher, of this user, would be shown
        return process == 1 or not _exists(process)
    name = os.path.basename(words[0])
    return name == b"systemd" or (process == 1 and not name.startswith(b"python") and not _is_launcher(process))


def _exists(process: int) -> bool:
    """Whether a process is there, be it hidden in /proc."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parent_of(process: int) -> int:
    """Parent of a process; 0 where the process is gone, or its parent outside of this container."""
    try:
        # the second field, the name in parentheses, may hold spaces and parentheses itself
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _is_launcher(process: int) -> bool:
    """Whether a process runs one of the launchers, by itself or as a script of Python."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(word) in _LAUNCHERS for word in words[:2])
