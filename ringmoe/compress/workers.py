"""Worker processes that make parts of a result side by side, each with its share of the cores.

Processes and not threads, because LAPACK's solver is called with Python's lock held.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

from ringmoe.errors import CheckpointError

ResultT = TypeVar("ResultT")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def each(make: Callable[[int], ResultT], jobs: Sequence[int], num_workers: int) -> Iterator[ResultT]:
    """Calls ``make`` with each job and gives the results as they come.

    Args:
        make: A function that can be pickled.
        jobs: Its arguments; they are begun in this order.
        num_workers: Processes; with 1 everything happens in this one.

    Raises:
        CheckpointError: A worker was ended from outside. Errors of ``make`` come as they are.
    """
    if num_workers == 1:
        yield from map(make, jobs)
        return
    threads = max(1, num_cores() // num_workers)
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would share locks of torch's threads
    with ProcessPoolExecutor(num_workers, context, initializer=_begin, initargs=(threads, os.getpid())) as pool:
        # workers begin with the first submits, and SciPy's OpenBLAS counts its threads once, when they import it
        with _environment("OPENBLAS_NUM_THREADS", str(threads)):
            futures = [pool.submit(make, job) for job in jobs]
        workers = set(multiprocessing.active_children()) - others
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:  # a job takes minutes: nobody waits for it after an interruption
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise CheckpointError(
                    f"one of {num_workers} worker processes was ended from outside, most likely for want of memory. "
                    "What was finished is kept: run the same command again, with --workers 1 if memory is short"
                ) from error
            raise


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable that processes inherit which begin meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _begin(threads: int, parent: int) -> None:
    """Prepares a worker: its threads, and that it ends with the process that began it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
