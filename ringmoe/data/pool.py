"""Work units on a pool of local processes. Units are independent, so this is all that parallel building needs."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path

from ringmoe import modality as registry
from ringmoe.data.plan import Unit
from ringmoe.data.unit import UnitResult, build_unit
from ringmoe.errors import ShardError
from ringmoe.modality import ModalitySpec


def run_units(units: Iterable[Unit], folder: Path, workers: int) -> Iterator[tuple[Unit, UnitResult]]:
    """Builds units and yields each with its result as soon as it is finished, in any order.

    Args:
        units: What to build; the next one is asked for when there is a process for it, not before.
        folder: Where their files go.
        workers: Processes; one builds in this process.

    Raises:
        ShardError: A worker was killed.
        OSError: A file cannot be written.
    """
    if workers == 1:
        for unit in units:
            yield unit, build_unit(unit, folder)
        return
    # one clean process imports everything once and forks the workers: this one may have threads, which do not survive
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([build_unit.__module__])
    pool = ProcessPoolExecutor(
        max_workers=workers, mp_context=context, initializer=_start_worker, initargs=(registry.known(),)
    )
    waiting = iter(units)
    running: dict[Future[UnitResult], Unit] = {}
    try:
        while True:
            for unit in islice(waiting, workers - len(running)):
                running[pool.submit(build_unit, unit, folder)] = unit
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            "a worker process was killed from outside, perhaps for want of memory. What is finished is kept: run the "
            "same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(specs: Sequence[ModalitySpec]) -> None:
    """Prepares a worker process: the modalities of its parent, an interrupt left to the parent, an end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for spec in specs:
        registry.register(spec)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # a parent that is killed outright cannot tell its workers, and they would wait for work for ever
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
