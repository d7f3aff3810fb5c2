"""Lines over the terrain: the cheapest way between two points, its smoothing, and the distance of every pixel to it."""

import heapq
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ringmoe.raster.synth.fields import Array

# H rows, W columns, N points of a line as (x, y) in pixels

CELL = 8  # side of the coarse cells on which ways are searched, pixels
_STEPS = [(dr, dc, float(np.hypot(dr, dc))) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if dr or dc]


def cheapest(cost_HW: Array, start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The way of least summed cost between two cells (row, col), over the eight neighbours (Dijkstra's algorithm)."""
    cost = cost_HW.tolist()
    height, width = cost_HW.shape
    best = {start: 0.0}
    came: dict[tuple[int, int], tuple[int, int]] = {}
    queue = [(0.0, start)]
    while queue:
        so_far, cell = heapq.heappop(queue)
        if cell == end:
            break
        if so_far > best[cell]:
            continue
        row, col = cell
        for dr, dc, length in _STEPS:
            r, c = row + dr, col + dc
            if not (0 <= r < height and 0 <= c < width):
                continue
            total = so_far + length * cost[r][c]
            if total < best.get((r, c), np.inf):
                best[r, c] = total
                came[r, c] = cell
                heapq.heappush(queue, (total, (r, c)))
    way = [end]
    while way[-1] != start:
        way.append(came[way[-1]])
    return way[::-1]


def smooth(points_N2: Array, window: int, step: float) -> Array:
    """A line rounded by a moving mean of ``window`` points, its ends kept, with a point every ``step`` pixels."""
    half = window // 2
    ends = [np.repeat(points_N2[:1], half, axis=0), np.repeat(points_N2[-1:], half, axis=0)]
    padded = np.concatenate((ends[0], points_N2, ends[1]))
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    rounded = np.stack([np.convolve(padded[:, i], kernel, mode="valid") for i in (0, 1)], axis=-1)
    return resample(np.concatenate((points_N2[:1], rounded[1:-1], points_N2[-1:])), step)


def arc_lengths(points_N2: Array) -> Array:
    """(N,) length of the line up to each point."""
    lengths: Array = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(points_N2, axis=0).T))))
    return lengths


def resample(points_N2: Array, step: float) -> Array:
    """The same line with points about every ``step`` pixels."""
    along = arc_lengths(points_N2)
    at = np.linspace(0.0, along[-1], max(2, round(along[-1] / step) + 1))
    return np.stack([np.interp(at, along, points_N2[:, i]) for i in (0, 1)], axis=-1)


class LineField(NamedTuple):
    """Where every pixel lies with respect to a line.

    Attributes:
        distance_HW: Distance to the line in pixels, infinite beyond the reach asked for.
        along_HW: Length of the line up to the nearest point.
    """

    distance_HW: Array
    along_HW: Array


def line_field(points_N2: Array, size: int, reach: float) -> LineField:
    """Distance to a line and place along it for all pixels within ``reach`` of it."""
    distance_HW = np.full((size, size), np.inf, dtype=np.float32)
    along_HW = np.zeros((size, size), dtype=np.float32)
    lengths = arc_lengths(points_N2)
    for i, (start, end) in enumerate(pairwise(points_N2)):
        low = np.clip(np.floor(np.minimum(start, end) - reach), 0, size).astype(int)
        high = np.clip(np.ceil(np.maximum(start, end) + reach), 0, size).astype(int)
        if (low >= high).any():
            continue
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        x = np.arange(low[0], high[0])[None, :] + 0.5 - start[0]
        y = np.arange(low[1], high[1])[:, None] + 0.5 - start[1]
        length = lengths[i + 1] - lengths[i]
        direction = (end - start) / max(length, 1e-9)
        along = np.clip(x * direction[0] + y * direction[1], 0.0, length)
        distance = np.hypot(x - along * direction[0], y - along * direction[1])
        nearer = (distance < distance_HW[window]) & (distance <= reach)
        distance_HW[window] = np.where(nearer, distance, distance_HW[window])
        along_HW[window] = np.where(nearer, lengths[i] + along, along_HW[window])
    return LineField(distance_HW, along_HW)
