"""A request to stop is one for all ranks, at the same step."""

import os
import signal
from contextlib import closing

import pytest
import torch.distributed as dist

from ringmoe.testing.ranks import run_ranks
from ringmoe.train.stopping import StopRequest


def test_the_first_signal_is_kept_and_the_second_ends_at_once():
    before = signal.getsignal(signal.SIGINT)  # a background job of a shell ignores it
    with closing(StopRequest()) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def _steps_until_stopped() -> int:
    with closing(StopRequest()) as stop:
        for step in range(5):
            if stop.agreed():
                return step
            if (step, dist.get_rank()) == (2, 1):
                os.kill(os.getpid(), signal.SIGTERM)
    return 5


@pytest.mark.distributed
def test_a_signal_to_one_rank_stops_all_after_the_same_step():
    assert run_ranks(_steps_until_stopped, 2) == [3, 3]
