"""Ways are the cheapest there are; distances agree with a slow search."""

from itertools import pairwise

import numpy as np
import pytest

from ringmoe.raster.synth.fields import generator
from ringmoe.raster.synth.paths import arc_lengths, cheapest, line_field, resample, smooth


def _cost(path, cost_HW):
    return sum(np.hypot(b[0] - a[0], b[1] - a[1]) * cost_HW[b] for a, b in pairwise(path))


def _slow_cost(cost_HW, start, end):
    """Bellman and Ford: relax every edge until nothing improves."""
    best_HW = np.full(cost_HW.shape, np.inf)
    best_HW[start] = 0.0
    for _ in range(cost_HW.size):
        for row, col in np.ndindex(cost_HW.shape):
            for r in range(max(0, row - 1), min(cost_HW.shape[0], row + 2)):
                for c in range(max(0, col - 1), min(cost_HW.shape[1], col + 2)):
                    total = best_HW[row, col] + np.hypot(r - row, c - col) * cost_HW[r, c]
                    best_HW[r, c] = min(best_HW[r, c], total)
    return best_HW[end]


def test_no_way_is_cheaper():
    cost_HW = np.exp(generator("cost").normal(0, 1, (6, 7)))
    path = cheapest(cost_HW, (0, 0), (5, 6))
    assert path[0] == (0, 0)
    assert path[-1] == (5, 6)
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1 for a, b in pairwise(path))
    assert _cost(path, cost_HW) == pytest.approx(_slow_cost(cost_HW, (0, 0), (5, 6)))


def test_a_wall_is_gone_round():
    cost_HW = np.ones((9, 9))
    cost_HW[:8, 4] = 1000.0
    assert (8, 4) in cheapest(cost_HW, (0, 0), (0, 8))


def test_smoothing_keeps_the_ends_and_shortens_the_way():
    zigzag_N2 = np.array([(x, 5.0 * (x % 2)) for x in range(40)], dtype=float)
    smooth_N2 = smooth(zigzag_N2, 5, 2.0)
    assert smooth_N2[[0, -1]] == pytest.approx(zigzag_N2[[0, -1]])
    assert arc_lengths(smooth_N2)[-1] < 0.5 * arc_lengths(zigzag_N2)[-1]
    steps = np.diff(arc_lengths(resample(np.array([[0.0, 0.0], [30.0, 40.0]]), 4.0)))
    assert steps == pytest.approx(50 / 12)


def test_distance_and_place_along_the_line():
    line_N2 = np.array([[4.0, 4.0], [20.0, 8.0], [24.0, 30.0]])
    field = line_field(line_N2, 36, 9.0)
    dense_N2 = resample(line_N2, 0.02)
    lengths = arc_lengths(dense_N2)
    for row, col in generator("pixels").integers(0, 36, (60, 2)):
        distances = np.hypot(*(dense_N2 - (col + 0.5, row + 0.5)).T)
        if distances.min() <= 8.9:
            assert field.distance_HW[row, col] == pytest.approx(distances.min(), abs=0.02)
            assert field.along_HW[row, col] == pytest.approx(lengths[distances.argmin()], abs=0.3)
        elif distances.min() > 9.1:
            assert field.distance_HW[row, col] == np.inf
