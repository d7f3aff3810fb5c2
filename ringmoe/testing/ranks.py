"""Run a function on several real gloo ranks, with a limit on the time that it may take.

The ranks are forked from a process that has imported the large packages already: each of them alone would spend seconds
on that. It computes nothing and has no threads; what it is asked to run stays imported for the ranks that come later.
"""

import importlib
import os
import queue
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_LARGE = (
    "torch._dynamo",  # which torch.optim asks for
    "torch.utils.tensorboard",
    "deepspeed",
    "deepspeed.moe.layer",
    "fairscale",
    "rasterio",
    "webdataset",
    "safetensors.torch",
    "tyro",
)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class _Job:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    world: int
    timeout: float
    init: bool
    environ: dict[str, str]
    folder: str


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 240.0, init: bool = True
) -> list[Any]:
    """Runs ``function(*args)`` on ``world`` processes and returns what each rank returned, in rank order.

    Args:
        function: A function at module level (the processes import it by name).
        world: Number of ranks; each sees RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
        *args: Passed to every rank.
        timeout: Seconds after which all ranks are ended.
        init: Whether a gloo process group is made first (the engine makes its own).

    Raises:
        RuntimeError: A rank raised (with its traceback) or ended without an answer.
        TimeoutError: The ranks did not finish in time.
    """
    job = _Job(function, args, world, timeout, init, dict(os.environ), os.getcwd())
    results, error = _Forker.running().ask(job)
    if error is not None:
        raise error
    return results


class _Forker:
    """The process that ranks are forked from: started once, it ends with this one."""

    _running: "_Forker | None" = None

    def __init__(self) -> None:
        context = mp.get_context("spawn")
        self._link, theirs = context.Pipe()
        # a package that looks for GPUs would leave their driver in a state that no fork can use
        names = _LARGE if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available() else ()
        self._process = context.Process(target=_serve, args=(theirs, names))
        self._process.start()
        theirs.close()
        # at which it ends; ``atexit`` is too late where this is a worker itself, which waits for its children before
        Finalize(None, self._link.close, exitpriority=0)

    @classmethod
    def running(cls) -> "_Forker":
        if cls._running is None or not cls._running._process.is_alive():
            cls._running = cls()
        return cls._running

    def ask(self, job: _Job) -> tuple[list[Any], Exception | None]:
        """What the ranks answered, or what went wrong."""
        try:
            self._link.send(job)
            return self._link.recv()  # type: ignore[no-any-return]
        except BaseException:  # nobody shall take this answer for that to another question
            assert self._process.pid
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            raise


def _serve(link: Connection, names: tuple[str, ...]) -> None:
    os.setpgid(0, 0)  # with its ranks
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)
    while True:
        try:
            answer: tuple[list[Any], Exception | None] = _run(link.recv()), None
        except EOFError:
            return
        except Exception as error:
            answer = [], error
        link.send(answer)


def _run(job: _Job) -> list[Any]:
    context = mp.get_context("fork")
    answers: Any = context.Queue()
    port = free_port()
    started = [context.Process(target=_rank_main, args=(job, r, port, answers), daemon=True) for r in range(job.world)]
    for process in started:
        process.start()
    try:
        return _collect(answers, started, time.monotonic() + job.timeout)
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
            process.join()


def _collect(answers: Any, started: list[Any], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(started):
        try:
            rank, result, trouble = answers.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"ranks {sorted(set(range(len(started))) - set(results))} did not finish in time"
                ) from None
            ended = [r for r, process in enumerate(started) if r not in results and process.exitcode not in (None, 0)]
            if ended and answers.empty():
                raise RuntimeError(
                    f"rank {ended[0]} ended with exit code {started[ended[0]].exitcode} and no answer"
                ) from None
            continue
        if trouble:
            raise RuntimeError(f"rank {rank} raised:\n{trouble}")
        results[rank] = result
    return [results[rank] for rank in range(len(started))]


def _rank_main(job: _Job, rank: int, port: int, answers: Any) -> None:
    os.chdir(job.folder)
    os.environ.clear()
    os.environ.update(job.environ)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        if job.init:
            dist.init_process_group("gloo", timeout=timedelta(seconds=job.timeout))
        answers.put((rank, job.function(*job.args), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        answers.close()
        answers.join_thread()
