"""Decoded rows that outlive the unit of work that read them.

A unit of work is a few rows of tiles, and its borders lie anywhere in the blocks of a file. Blocks of JPEG 2000 are a
thousand rows high: read by itself, each unit would decode whole blocks of which it needs a part, and every block would
be decoded by several units. Whoever builds units that follow each other keeps the rest of the last blocks for the next.
What is read is the same with and without, and so is what is said of damaged files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ringmoe.raster.scene import Pixels, Scene

# C channels, H rows, W columns

_MOST_BYTES = 256 << 20


class KeptRows:
    """Rows behind what was read of scenes last, a few scenes at most."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Scene, int, Pixels]] = {}

    def has_room(self, num_bytes: int) -> bool:
        """Whether rows of one scene may be kept that take so many bytes."""
        return num_bytes <= _MOST_BYTES

    def put(self, scene: Scene, first: int, rows_CHW: Pixels) -> None:
        """Keeps rows of a scene from ``first`` on, if there is room; what was kept longest makes it."""
        self._rows.pop(scene.name, None)
        if not self.has_room(rows_CHW.nbytes):
            return
        while self._rows and sum(rows.nbytes for *_, rows in self._rows.values()) + rows_CHW.nbytes > _MOST_BYTES:
            del self._rows[next(iter(self._rows))]
        self._rows[scene.name] = scene, first, rows_CHW.copy()

    def take(self, scene: Scene, first: int) -> Pixels | None:
        """The rows of a scene from ``first`` on that are kept, which are then no longer; None where there are none."""
        found = self._rows.pop(scene.name, None)
        if found is None or found[0] != scene or not 0 <= first - found[1] < found[2].shape[1]:
            return None
        return found[2][:, first - found[1] :]


_KEPT: ContextVar[KeptRows | None] = ContextVar("kept rows", default=None)


@contextmanager
def keeping_rows() -> Iterator[None]:
    """Keeps decoded rows for as long as the context lasts."""
    before = _KEPT.get()
    _KEPT.set(KeptRows())
    try:
        yield
    finally:
        _KEPT.set(before)  # not by a token: a generator that is given up may end in another context


def kept_rows() -> KeptRows | None:
    """Where rows are kept now; None where they are not."""
    return _KEPT.get()
