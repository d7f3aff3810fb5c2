"""Tiles to a shard: a plain WebDataset tar whose bytes depend on nothing but the tiles.

The tar is webdataset's own. What is added is that it appears under its name only when it is whole, and that the place
and checksum of every tile's pixels are noted, so that a reader needs neither tar nor npy parsing.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from webdataset.writer import TarWriter

from ringmoe.batch import Tile
from ringmoe.data.codec import SUFFIX, Codec, checksum, encode
from ringmoe.data.durable import DurableFile
from ringmoe.data.layout import INDEX_DTYPE

_TAR_BLOCK = 512
_OWNER = "ringmoe"


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A finished shard file.

    Attributes:
        samples: Samples in it.
        bytes: Size.
        sha256: Checksum.
    """

    samples: int
    bytes: int
    sha256: str


class TarShard:
    """A tar on its way to be a shard, and its rows of the index; a context manager.

    Without ``finish`` nothing is left behind.
    """

    index_dtype: ClassVar[np.dtype[Any]]

    def __init__(self, path: Path, codec: Codec = "raw") -> None:
        """Begins the shard; ``finish`` gives the file its name."""
        self._codec = codec
        self._file = DurableFile(path)
        self._tar = TarWriter(self._file, user=_OWNER, group=_OWNER, mode=0o444, mtime=0, compress=False, encoder=False)
        self._rows: list[tuple[int, ...]] = []

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not finished."""
        self._file.__exit__(kind, error, trace)

    def finish(self) -> tuple[WrittenShard, np.ndarray[Any, np.dtype[Any]]]:
        """Makes the shard durable and gives it its name.

        Returns:
            The shard, and its rows of the index.
        """
        self._tar.close()
        self._file.commit()
        shard = WrittenShard(samples=len(self._rows), bytes=self._file.size, sha256=self._file.sha256)
        return shard, np.array(self._rows, dtype=self.index_dtype)


class ShardWriter(TarShard):
    """Writes one shard of tiles."""

    index_dtype = INDEX_DTYPE

    def add(self, key: str, tile: Tile, *, scene: int, group: int) -> None:
        """Appends a sample: ``<key>.json``, and ``<key>.npy`` or ``<key>.pco``.

        Args:
            key: Unique in its modality, without a dot.
            tile: Pixels and record.
            scene: Number of the scene, for the index.
            group: Number of the group, for the index.
        """
        stored = encode(tile.pixels_CHW, self._codec)
        member = npy_header(tile.pixels_CHW) + stored
        record = json.dumps(tile.record.to_dict(), allow_nan=False).encode()
        self._tar.write({"__key__": key, "json": record, SUFFIX[self._codec]: member})
        # the members are written in the order of their names, so the pixels are the last thing before the padding
        end = self._tar.tarstream.offset - -len(member) % _TAR_BLOCK
        place = (end - len(stored), len(stored), checksum(stored))
        self._rows.append((*place, scene, tile.record.row, tile.record.col, group))


def npy_bytes(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """An array as the content of an .npy file."""
    return npy_header(array) + array.tobytes()


def npy_header(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """What stands before an array's numbers in an .npy file: type and shape."""
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
