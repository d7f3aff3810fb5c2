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
from ringmoe.raster.kept import keeping_rows

_LONGEST_RUN = 8  # units that one process builds one after the other
_RUNS_OF_EACH = 4  # at least so many for each process


def run_all(units: Sequence[Unit], folder: Path, *, workers: int) -> Iterator[tuple[Unit, UnitResult]]:
    """Builds units like ``run_units``, runs of them by one process as long as all processes have work to the end."""
    together = max(1, min(_LONGEST_RUN, len(units) // (_RUNS_OF_EACH * workers)))
    return run_units(units, folder, workers, together=together)


def run_units(
    units: Iterable[Unit], folder: Path, workers: int, *, together: int = 1
) -> Iterator[tuple[Unit, UnitResult]]:
    """Builds units and yields each with its result as soon as it is finished, in any order.

    Args:
        units: What to build; the next one is asked for when there is a process for it, not before.
        folder: Where their files go.
        workers: Processes; one builds in this process.
        together: Units that follow each other which a process gets at once: what they share is decoded once.

    Raises:
        ShardError: A worker was killed.
        OSError: A file cannot be written.
    """
    if workers == 1:
        with keeping_rows():
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
    running: dict[Future[list[UnitResult]], tuple[Unit, ...]] = {}
    try:
        while True:
            while len(running) < workers and (run := tuple(islice(waiting, together))):
                running[pool.submit(_build_run, run, folder)] = run
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
        pool.shutdown(cancel_futures=True)


def _build_run(units: Sequence[Unit], folder: Path) -> list[UnitResult]:
    with keeping_rows():
        return [build_unit(unit, folder) for unit in units]


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
