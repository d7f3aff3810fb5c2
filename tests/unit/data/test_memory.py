import gc
import threading

import numpy as np
import torch

from ringmoe.data.memory import ReusedMemory


def _address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_the_last_view_is_gone():
    memory = ReusedMemory()
    first = memory.array((4, 3, 16, 16), "uint16")
    assert first.shape == (4, 3, 16, 16)
    assert first.dtype == np.uint16
    assert first.flags.c_contiguous
    assert first.flags.writeable
    first[:] = 7
    address = _address(first)
    held = torch.from_numpy(first[1:].reshape(-1)[5:].view(np.int16))  # a view of a view of a view
    del first
    other = memory.array((4, 3, 16, 16), "uint16")
    other[:] = 9
    assert _address(other) != address
    assert (held == 7).all()
    del held
    gc.collect()
    assert _address(memory.array((2, 3, 16, 24), "uint16")) == address


def test_memory_of_another_size_is_given_up():
    memory = ReusedMemory()
    large = memory.array((1 << 20,), "uint8")
    del large
    small = memory.array((1 << 10,), "uint8")
    assert small.base.base is not None
    del small
    assert sum(block.nbytes for block in memory._free) == 1 << 10


def test_threads_never_share_an_array():
    memory = ReusedMemory()
    wrong = []

    def work(value):
        for _ in range(2000):
            array = memory.array((64,), "int64")
            array[:] = value
            if (array != value).any():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
