"""Run a function on several real gloo ranks, with a limit on the time that it may take."""

import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 120.0, init: bool = True
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
    context = mp.get_context("spawn")
    answers: Any = context.Queue()
    port = free_port()
    started = [
        context.Process(target=_rank_main, args=(function, args, r, world, port, init, timeout, answers), daemon=True)
        for r in range(world)
    ]
    for process in started:
        process.start()
    try:
        return _collect(answers, started, time.monotonic() + timeout)
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


def _rank_main(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world: int,
    port: int,
    init: bool,
    timeout: float,
    answers: Any,
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        if init:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        answers.put((rank, function(*args), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        answers.close()
        answers.join_thread()
