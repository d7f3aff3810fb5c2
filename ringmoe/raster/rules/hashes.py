"""Perceptual hashes of tiles: 64 bits that stay nearly the same when a scene is encoded or processed anew.

The lowest 8 x 8 frequencies of the tile's discrete cosine transform, the mean aside, each above or below their median
(Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1). Gain and offset of
the numbers change nothing. Entries that are not finite are set to the mean of the others of their channel, so that
their shape marks the hash as little as can be.
"""

from functools import cache

import numpy as np

from ringmoe.raster.scene import Pixels

# C channels, H rows, W columns; F frequencies of one side; N hashes

NEAR = 3
"""Largest number of bits in which the hashes of near-duplicates differ."""

_SIDE = 8
_BLOCK_BITS = 16  # of 64: two hashes that differ in at most NEAR bits are equal in one of NEAR + 1 blocks


def picture_hash(pixels_CHW: Pixels, *, is_complex: bool) -> int:
    """The hash of a tile: of the sum of its channels, or of their power where they are parts of complex bands."""
    pixels_CHW = pixels_CHW.astype(np.float32)
    channels_CHW = np.square(pixels_CHW) if is_complex else pixels_CHW
    if not (valid_CHW := np.isfinite(channels_CHW)).all():
        counts_C11 = np.maximum(valid_CHW.sum(axis=(1, 2), keepdims=True), 1)
        means_C11 = np.where(valid_CHW, channels_CHW, 0).sum(axis=(1, 2), keepdims=True) / counts_C11
        channels_CHW = np.where(valid_CHW, channels_CHW, means_C11)
    picture_HW = channels_CHW.sum(axis=0)
    rows_FH, cols_FW = (_cosines(length) for length in picture_HW.shape)
    # not BLAS products, whose last bits depend on the number of cores
    found_FF = np.einsum("fw,gw->fg", np.einsum("fh,hw->fw", rows_FH, picture_HW), cols_FW)
    return int.from_bytes(np.packbits(found_FF > np.median(found_FF)).tobytes())


def earlier_alike(hashes_N: Pixels, scenes_N: Pixels) -> Pixels:
    """Which tiles look like a tile of a scene with a lower number: (N,) uint64 and (N,) numbers to (N,) booleans.

    Equal hashes are taken together first. Of the others, those that share one of four blocks of bits are compared, as
    of hashes that differ in three bits one block is the same.
    """
    values_U, inverse_N = np.unique(hashes_N, return_inverse=True)
    first_U = np.full(len(values_U), np.iinfo(np.int64).max)
    np.minimum.at(first_U, inverse_N, scenes_N)
    lowest_U = first_U.copy()
    for block in range(NEAR + 1):
        keys_U = (values_U >> np.uint64(block * _BLOCK_BITS)) & np.uint64((1 << _BLOCK_BITS) - 1)
        order_U = np.argsort(keys_U, kind="stable")
        sorted_U = keys_U[order_U]
        at = np.arange(len(order_U))  # those that still have an equal ``apart`` places behind
        for apart in range(1, len(order_U)):
            at = at[: np.searchsorted(at, len(order_U) - apart)]
            at = at[sorted_U[at + apart] == sorted_U[at]]
            if not len(at):
                break
            one, other = order_U[at], order_U[at + apart]
            near = np.bitwise_count(values_U[one] ^ values_U[other]) <= NEAR
            one, other = one[near], other[near]
            np.minimum.at(lowest_U, one, first_U[other])
            np.minimum.at(lowest_U, other, first_U[one])
    alike_N: Pixels = lowest_U[inverse_N] < scenes_N
    return alike_N


@cache
def _cosines(length: int) -> Pixels:
    """The lowest frequencies but the constant of a discrete cosine transform: (F, length)."""
    places = (np.arange(length) + 0.5) / length
    cosines: Pixels = np.cos(np.pi * np.arange(1, _SIDE + 1)[:, None] * places).astype(np.float32)
    return cosines
