"""Every moment belongs to one part, and a clock that nobody started costs nothing."""

import time

import pytest
import torch

from ringmoe.clock import REST, Clock, clock_of


class Hand:
    """A time that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def hand():
    return Hand()


@pytest.fixture
def clock(hand):
    return Clock(hand)


def test_an_inner_part_takes_its_time_out_of_the_outer_one(clock, hand):
    clock.start()
    hand.time += 1
    with clock.during("backward"):
        hand.time += 2
        with clock.during("exchange"):
            hand.time += 4
        hand.time += 8
    with clock.during("exchange"):
        hand.time += 16
    hand.time += 32
    assert clock.stop() == {REST: 33, "backward": 10, "exchange": 20}


def test_each_start_counts_from_nothing(clock, hand):
    for seconds in (1.0, 2.0):
        clock.start()
        hand.time += seconds
        assert clock.stop() == {REST: seconds}
    assert clock.stop() == {}


def test_a_part_ends_where_an_error_leaves_it(clock, hand):
    def read():
        with clock.during("data"):
            hand.time += 1
            raise ValueError("broken")

    clock.start()
    with pytest.raises(ValueError, match="broken"):
        read()
    hand.time += 2
    assert clock.stop() == {"data": 1, REST: 2}


def test_nothing_is_kept_while_nobody_listens(clock, hand):
    with clock.during("exchange"):
        hand.time += 1
    assert not clock.is_running
    assert clock.stop() == {}


def test_a_part_costs_microseconds():
    clock = Clock()
    clock.start()
    before = time.process_time()
    for _ in range(1000):
        with clock.during("exchange"):
            pass
    assert (time.process_time() - before) / 1000 < 50e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_part_is_what_its_stream_does():
    clock = clock_of(torch.device("cuda"))
    clock.start()
    with clock.during("forward"):
        torch.cuda._sleep(100_000_000)  # cycles: some 50 ms, of which the host knows nothing
    with clock.during("data"):
        time.sleep(0.01)  # hidden behind them
    before = time.perf_counter()
    seconds = clock.stop()
    assert time.perf_counter() - before > 0.01, "the host did not wait before"
    assert seconds["forward"] > 0.02
    assert seconds["data"] < 0.005
