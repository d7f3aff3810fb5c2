"""The helper that starts ranks must itself tell the truth."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed as dist

from ringmoe.testing.ranks import run_ranks

pytestmark = pytest.mark.distributed


def _sum_of_ranks() -> float:
    value = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(value)
    return value.item()


def _one_raises() -> None:
    if dist.get_rank() == 1:
        raise ValueError("only here")


def test_every_rank_answers_in_order():
    assert run_ranks(_sum_of_ranks, 2) == [3.0, 3.0]


def test_the_traceback_of_the_rank_that_raised_is_shown():
    with pytest.raises(RuntimeError, match=r"rank 1 raised[\s\S]*only here"):
        run_ranks(_one_raises, 2)


def _place() -> tuple[str, str | None]:
    return os.getcwd(), os.environ.get("SAID_BY_A_TEST")


def test_ranks_have_the_folder_and_the_environment_of_whoever_asks(tmp_path, monkeypatch):
    assert run_ranks(_place, 1)[0][1] is None
    monkeypatch.setenv("SAID_BY_A_TEST", "yes")
    monkeypatch.chdir(tmp_path)
    assert run_ranks(_place, 2) == [(str(tmp_path), "yes")] * 2


def _stay(folder) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def _processes_that_run(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if os.path.exists(f"/proc/{path.name}")]


def test_ranks_that_take_too_long_are_ended(tmp_path):
    with pytest.raises(TimeoutError, match="did not finish in time"):
        run_ranks(_stay, 2, tmp_path, timeout=3, init=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert not _processes_that_run(tmp_path)
    assert run_ranks(_sum_of_ranks, 2) == [3.0, 3.0]


def test_who_is_interrupted_leaves_no_rank_and_gets_no_old_answer(tmp_path):
    def interrupt(*_: object) -> None:
        raise InterruptedError

    usual = signal.signal(signal.SIGUSR1, interrupt)
    try:
        run_ranks(_sum_of_ranks, 1)  # so that ranks come at once
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(InterruptedError):
            run_ranks(_stay, 2, tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, usual)
    assert run_ranks(_sum_of_ranks, 2) == [3.0, 3.0]
    assert not _processes_that_run(tmp_path)


def _asks() -> list[float]:
    return run_ranks(_sum_of_ranks, 2)


@pytest.mark.timeout(60)
def test_a_worker_that_had_ranks_ends():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        assert alone.submit(_asks).result() == [3.0, 3.0]
