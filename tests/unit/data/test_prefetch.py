import threading
import time

import pytest

from ringmoe.data.prefetch import Prefetch


def test_results_come_in_order_and_not_too_far_ahead():
    made = []

    def make(number):
        made.append(number)
        return number * number

    with Prefetch(make, first=3, depth=2) as ahead:
        assert [ahead.next() for _ in range(4)] == [9, 16, 25, 36]
        time.sleep(0.3)
        assert made[-1] <= 6 + 3  # two are stored, and one waits for room
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_is_raised_where_its_result_was_due():
    def make(number):
        if number == 2:
            raise KeyError("broken")
        return number

    with Prefetch(make, first=0, depth=4) as ahead:
        assert [ahead.next(), ahead.next()] == [0, 1]
        with pytest.raises(KeyError, match="broken"):
            ahead.next()


def test_it_can_be_closed_while_it_waits_for_room():
    ahead = Prefetch(lambda number: number, first=0, depth=1)
    time.sleep(0.05)
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
