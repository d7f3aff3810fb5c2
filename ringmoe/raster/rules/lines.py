"""``striped``: lines of a detector that are dead, out of place, or repeat.

A line (a row or a column) of a window is compared with those beside it, in each channel for itself. Three things are
looked for. They must show in every cell along the line: hardly anything on the ground is that long and that straight.

1. *Dead*: the line holds one single value, and in every cell fewer than half of the pixels of the lines beside do.
2. *Out of place*: the line differs from both neighbours more than ``_CONTRAST`` times as much as these differ from
   each other, ``min(|l - a|, |b - l|) > 3 |b - a|`` in sums of absolute differences. On the ground, what lies two
   pixels apart differs at least as much as what lies one apart; a hot or scrambled line turns this round.
3. *Repeated*: one or more lines equal the one before them to the last bit, while in the pairs right before and behind
   them fewer than half of the pixels do. This finds lines that were filled with their neighbour, and dropouts of
   several lines. Where rows and columns both repeat the cause is another one (nearest-neighbour resampling, the
   blocks of a strongly compressed JPEG), and nothing is said.

All lines are screened at 3 places of each cell; what is suspicious there is confirmed at all pixels. Tiles below 32
pixels are not judged: their lines are too short to tell.
"""

from collections.abc import Iterator

import numpy as np

from ringmoe.raster.rules.windows import Windows
from ringmoe.raster.scene import Pixels

# C channels, H lines of W pixels, P pairs of neighbouring lines, K suspicious lines, X cells along a line, S samples
# R, N windows

_CONTRAST = 3
_SMALLEST_TILE = 32
_MOST_PIXELS = 1 << 21  # of lines that are looked at together
_PLACES = 3  # of a cell where lines are screened


def striped(strip_CHW: Pixels, windows: Windows) -> Pixels:
    """Which windows have a faulty row or column: (C, H, W) to (R, N)."""
    odd_RN, repeated_RN = _faulty_rows(strip_CHW, windows)
    odd_NR, repeated_NR = _faulty_rows(strip_CHW.swapaxes(1, 2), windows)
    faulty: Pixels = odd_RN | odd_NR.T | (repeated_RN ^ repeated_NR.T)
    return faulty


def can_be_striped(windows: Windows) -> bool:
    """Whether lines are long enough to be judged."""
    return windows.tile >= _SMALLEST_TILE


def _faulty_rows(lines_CHW: Pixels, windows: Windows) -> tuple[Pixels, Pixels]:
    """Which windows have a row that is dead or out of place, and which a repeated one: two of (R, N)."""
    num_places = min(windows.cell, _PLACES)
    first = (windows.cell - num_places) // 2
    places = range(first, first + num_places)  # side by side: they share what comes from memory at once
    odd_CHN, equal_CPN = (windows.along(np.add, counts, axis=2) for counts in _screen(lines_CHW, places, windows.cell))
    num = len(places) * windows.size
    starts = range(0, lines_CHW.shape[1] - windows.tile + 1, windows.stride)
    odd_RN = repeated_RN = np.zeros((len(starts), odd_CHN.shape[2]), dtype=bool)
    suspicious_CHN = odd_CHN > 2 * num // 3
    if suspicious_CHN.any():
        odd_HN = np.logical_or.reduce(_confirm_odd(suspicious_CHN, lines_CHW, windows), axis=0)
        odd_RN = np.stack([odd_HN[row : row + windows.tile - 2].any(axis=0) for row in starts])
    repeats_CPN = equal_CPN == num
    if repeats_CPN.any():
        _confirm_repeats(repeats_CPN, lines_CHW, windows)
        begins_CPN, ends_CPN = _runs(repeats_CPN, 2 * equal_CPN < num)
        inside = [slice(row, row + windows.tile - 1) for row in starts]
        repeated = [(ends_CPN[:, at] & (begins_CPN[:, at] >= at.start)).any(axis=(0, 1)) for at in inside]
        repeated_RN = np.stack(repeated)
    return odd_RN, repeated_RN


def _screen(lines_CHW: Pixels, places: range, cell: int) -> tuple[Pixels, Pixels]:
    """Looks at a few places of each cell.

    Returns:
        Of each line but the first and last, the places where it differs from both neighbours: more than twice as much
        as they from each other, or as one value that it holds at all places (C, H - 2, X). Of each pair, the places
        where its lines are equal (C, H - 1, X).
    """
    num_channels, num_lines, width = lines_CHW.shape
    odd_CHX = np.empty((num_channels, num_lines - 2, width // cell), dtype=np.uint16)
    equal_CPX = np.empty((num_channels, num_lines - 1, width // cell), dtype=np.uint16)
    for lines_HW, odd_HX, equal_PX in zip(lines_CHW, odd_CHX, equal_CPX, strict=True):  # one channel fits into caches
        sample_SHX = np.stack([lines_HW[:, place::cell] for place in places])
        near_SPX = _difference(sample_SHX[:, 1:], sample_SHX[:, :-1])
        far_SHX = _difference(sample_SHX[:, 2:], sample_SHX[:, :-2])
        least_SHX = np.minimum(near_SPX[:, 1:], near_SPX[:, :-1])
        half_SHX = least_SHX >> 1 if least_SHX.dtype.kind == "u" else least_SHX / 2  # twice the other may overflow
        flat_HX = np.logical_and.reduce(sample_SHX[1:, 1:-1] == sample_SHX[:-1, 1:-1], axis=0)
        odd_SHX = (half_SHX > far_SHX) | (flat_HX & (least_SHX > 0))
        odd_HX[...] = np.add.reduce(odd_SHX.view(np.uint8), axis=0, dtype=np.uint8)  # of bytes: several times faster
        equal_PX[...] = np.add.reduce((near_SPX == 0).view(np.uint8), axis=0, dtype=np.uint8)
    return odd_CHX, equal_CPX


def _difference(first: Pixels, second: Pixels) -> Pixels:
    """Absolute difference; of signed integers as unsigned ones, which hold all of it."""
    if first.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            apart: Pixels = np.abs(first - second)
            return apart
    difference: Pixels = np.maximum(first, second) - np.minimum(first, second)
    return difference.view(f"u{first.dtype.itemsize}")


def _confirm_odd(suspicious_CHN: Pixels, lines_CHW: Pixels, windows: Windows) -> Pixels:
    """Which windows of lines are dead or out of place at all pixels: (C, H - 2, N)."""
    confirmed_CHN = np.zeros_like(suspicious_CHN)
    for channels_K, lines_K in _some(suspicious_CHN, lines_CHW.shape[2]):
        confirmed_CHN[channels_K, lines_K] = _are_odd(channels_K, lines_K, lines_CHW, windows)
    return confirmed_CHN


def _are_odd(channels_K: Pixels, lines_K: Pixels, lines_CHW: Pixels, windows: Windows) -> Pixels:
    """``_confirm_odd`` of some lines: (K, N)."""
    before_KW, line_KW, behind_KW = (lines_CHW[channels_K, lines_K + offset] for offset in range(3))
    pairs = ((line_KW, before_KW), (behind_KW, line_KW), (behind_KW, before_KW))
    shape = (len(lines_K), -1, windows.cell)
    first_KX, second_KX, far_KX = (_difference(*pair).reshape(shape).sum(axis=2, dtype=np.float64) for pair in pairs)
    equal = [(one == other).reshape(shape).sum(axis=2) for one, other in pairs[:2]]
    changed_KX = 2 * np.maximum(*equal) < windows.cell
    odd_KX = changed_KX & (np.minimum(first_KX, second_KX) > _CONTRAST * far_KX)
    low_KN, high_KN = (
        windows.along(extremum, extremum.reduce(line_KW.reshape(shape), axis=2), axis=1)
        for extremum in (np.minimum, np.maximum)
    )
    dead_KN = windows.along(np.logical_and, changed_KX, axis=1) & (low_KN == high_KN)
    return np.asarray(windows.along(np.logical_and, odd_KX, axis=1) | dead_KN)


def _confirm_repeats(repeats_CPN: Pixels, lines_CHW: Pixels, windows: Windows) -> None:
    """Takes back repeats that are none at all pixels."""
    for channels_K, pairs_K in _some(repeats_CPN, lines_CHW.shape[2]):
        equal_KW = lines_CHW[channels_K, pairs_K] == lines_CHW[channels_K, pairs_K + 1]
        equal_KX = np.logical_and.reduce(equal_KW.reshape(len(pairs_K), -1, windows.cell), axis=2)
        repeats_CPN[channels_K, pairs_K] &= windows.along(np.logical_and, equal_KX, axis=1)


def _some(flags_CLN: Pixels, length: int) -> Iterator[tuple[Pixels, Pixels]]:
    """Channels and lines that have a flag, a few at a time: copies of all of them could be as large as the strip."""
    channels_K, lines_K = np.nonzero(flags_CLN.any(axis=2))
    step = max(_MOST_PIXELS // length, 1)
    for first in range(0, len(lines_K), step):
        yield channels_K[first : first + step], lines_K[first : first + step]


def _runs(repeats_CPN: Pixels, changed_CPN: Pixels) -> tuple[Pixels, Pixels]:
    """Runs of repeats between two pairs that changed.

    Returns:
        The last pair before the run that may end at each pair (C, P, N), and whether one does end there (C, P, N).
    """
    pairs_P1 = np.arange(repeats_CPN.shape[1])[:, None]
    others_CPN = np.maximum.accumulate(np.where(repeats_CPN, -1, pairs_P1), axis=1)
    begins_CPN = np.full_like(others_CPN, -1)
    begins_CPN[:, 1:] = others_CPN[:, :-1]
    ends_CPN = changed_CPN & (begins_CPN >= 0)
    ends_CPN[:, 1:] &= repeats_CPN[:, :-1]
    ends_CPN &= np.take_along_axis(changed_CPN, np.maximum(begins_CPN, 0), axis=1)
    return begins_CPN, ends_CPN
