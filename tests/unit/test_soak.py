"""What the soak calls growth, and where it kills."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.reliability.soak import LEAST, MOST, STEPS, deaths, growth, unused


def test_growth_is_that_of_the_second_half():
    samples = [(step, 100.0 + min(step, 1000) / 10, 500.0 + step / 100) for step in range(10, 2001, 10)]
    samples[150] = (1510, 900.0, 900.0)
    assert growth(samples, 0) == 0.0
    assert growth(samples, 1) == pytest.approx(8 / 511, abs=1e-4)


def test_kills_come_every_hundred_or_two_and_are_always_the_same():
    steps = [0, *(death.step for death in deaths(STEPS))]
    assert all(LEAST <= after - before <= MOST for before, after in pairwise(steps))
    assert STEPS - steps[-1] <= MOST
    assert deaths(STEPS) == deaths(STEPS) != deaths(STEPS, seed=1)
    assert all(death.resumed < death.step <= death.resumed + 50 for death in deaths(STEPS))
    assert {victims for death in deaths(STEPS) for victims in [death.victims]} == {(0,), (1,), (0, 1)}


def test_a_file_is_left_where_nobody_uses_it(tmp_path: Path):
    used, left = tmp_path / "used", tmp_path / "left"
    left.touch()
    with used.open("w") as file:
        sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=file)
    try:
        assert unused({used, left, tmp_path / "gone"}) == {left}
    finally:
        sleeper.communicate(b"\n")
