"""Work units on a pool of local processes. Units are independent, so this is all that parallel building needs."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from ringmoe import modality as registry
from ringmoe.data.plan import Unit
from ringmoe.data.unit import UnitResult, build_unit
from ringmoe.errors import ShardError
from ringmoe.modality import ModalitySpec
from ringmoe.raster.kept import keeping_rows

_LONGEST_RUN = 8  # units


def in_runs(units: Sequence[Unit], processes: int) -> list[Sequence[Unit]]:
    """Units that follow each other in runs, each for one process: what they share is decoded once.

    The last runs are short, so that no process is left alone with a long one.
    """
    if processes == 1:
        return [units] if units else []
    runs: list[Sequence[Unit]] = []
    first = 0
    while first < len(units):
        length = max(1, min(_LONGEST_RUN, (len(units) - first) // (2 * processes)))
        runs.append(units[first : first + length])
        first += length
    return runs


def run_all(units: Sequence[Unit], folder: Path, *, workers: int) -> Iterator[tuple[Unit, UnitResult]]:
    """Builds units by local processes alone, like ``run_units``."""
    return run_units(in_runs(units, workers), folder, workers)


def run_units(runs: Iterable[Sequence[Unit]], folder: Path, workers: int) -> Iterator[tuple[Unit, UnitResult]]:
    """Builds units and yields each with its result as soon as it is finished, in any order.

    Args:
        runs: What to build, in runs that each go to one process; the next one is asked for when there is a process for
            it, not before.
        folder: Where their files go.
        workers: Processes; one builds in this process.

    Raises:
        ShardError: A worker was killed.
        OSError: A file cannot be written.
    """
    if workers == 1:
        for run in runs:
            yield from _build_run(run, folder)
        return
    # one clean process imports everything once and forks the workers: this one may have threads, which do not survive
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([build_unit.__module__])
    stop = context.Event()
    pool = ProcessPoolExecutor(
        max_workers=workers, mp_context=context, initializer=_start_worker, initargs=(registry.known(), stop)
    )
    waiting = iter(runs)
    running: dict[Future[list[UnitResult]], Sequence[Unit]] = {}
    try:
        while True:
            while len(running) < workers and (run := next(waiting, ())):
                running[pool.submit(_work, run, folder)] = run
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield from zip(running.pop(future), future.result(), strict=True)
    except BrokenProcessPool as error:
        raise ShardError(
            "a worker process was killed from outside, perhaps for want of memory. What is finished is kept: run the "
            "same command again, with fewer --workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _build_run(run: Sequence[Unit], folder: Path) -> Iterator[tuple[Unit, UnitResult]]:
    with keeping_rows() if len(run) > 1 else nullcontext():  # of a single one nobody needs what follows
        for unit in run:
            yield unit, build_unit(unit, folder)


_stop: Event | None = None  # of a worker: whether the rest of its run is still wanted


def _work(run: Sequence[Unit], folder: Path) -> list[UnitResult]:
    """Builds a run in a worker; the rest is left when nobody waits for it. What is finished lies in the folder."""
    results = []
    for _, result in _build_run(run, folder):
        results.append(result)
        if _stop is not None and _stop.is_set():
            break
    return results


def _start_worker(specs: Sequence[ModalitySpec], stop: Event) -> None:
    """Prepares a worker process: the modalities of its parent, an interrupt left to the parent, an end with it."""
    global _stop
    _stop = stop
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
