"""Large arrays in memory that is used again and again.

A fresh block of some megabytes comes from the kernel page by page, each cleared first, and goes back when it is freed.
Reading into such memory takes up to twice as long as reading into memory that is there already.
"""

import math
from typing import Any

import numpy as np

_MOST_FREE = 4  # blocks that wait for their next use


class ReusedMemory:
    """Hands out arrays. The memory of one is taken for another when nobody holds it, or a view of it, any more."""

    def __init__(self) -> None:
        self._free: list[np.ndarray[Any, np.dtype[np.uint8]]] = []

    def array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
        """An array with arbitrary content, which belongs to the caller; any thread may call and let go of it."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        loan = np.asarray(_Loan(self._block(num_bytes), self._free))
        return loan[:num_bytes].view(dtype).reshape(shape)

    def _block(self, num_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        while self._free:
            try:
                block = self._free.pop()
            except IndexError:  # another thread was quicker
                break
            if num_bytes <= block.nbytes <= 2 * num_bytes:
                return block  # else it is of another kind of batch, and is given up
        return np.empty(num_bytes, np.uint8)


class _Loan:
    """What an array and all its views hold on to; when it goes, its block is free again."""

    def __init__(self, block: np.ndarray[Any, np.dtype[np.uint8]], free: list[Any]) -> None:
        self.__array_interface__ = block.__array_interface__
        self._block = block
        self._free = free

    def __del__(self) -> None:
        if len(self._free) < _MOST_FREE:
            self._free.append(self._block)
