"""What a tile's pixels look like in a shard, and back: raw by default, or coded without loss; and their checksum.

``pco`` is one standalone stream of pcodec (https://github.com/pcodec/pcodec), which finds the distribution of numbers
and packs each in as many bits as it takes. It is handed integers as differences between neighbouring channels, which
are alike, and floating-point numbers as they are. It was chosen by measurement: ``benchmarks/lossless.py``.

The checksum is that of the stored bytes. So damage is found before any decoder sees it, by whoever copies the bytes as
well as by whoever decodes them.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import xxhash
from pcodec import ChunkConfig, standalone

# C channels, H x W pixels

Codec = Literal["raw", "pco"]
CODECS: tuple[Codec, ...] = get_args(Codec)

SUFFIX: dict[Codec, str] = {"raw": "npy", "pco": "pco"}
"""How the names of members end. Each begins with the header of an .npy file, which says type and shape."""

_PCO = ChunkConfig(enable_8_bit=True)

checksum = xxhash.xxh3_64_intdigest
"""XXH3, 64 bits, of a buffer: several times as fast as memory is copied, where CRC-32 takes longer than reading."""


def joint_checksum(parts: Iterable[bytes | memoryview]) -> int:
    """The same of several buffers, one after the other."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def encode(pixels_CHW: np.ndarray[Any, np.dtype[Any]], codec: Codec) -> bytes:
    """The stored bytes of a tile of one of numpy's integer or floating-point types."""
    if codec == "raw":
        return pixels_CHW.tobytes()
    if pixels_CHW.dtype.kind in "iu":
        pixels_CHW = np.diff(pixels_CHW, axis=0, prepend=np.zeros_like(pixels_CHW[:1]))  # modulo the type's range
    return bytes(standalone.simple_compress(pixels_CHW.reshape(-1), _PCO))


def decode(stored: bytes | memoryview, codec: Codec, pixels_CHW: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Fills a tile from its stored bytes; no more is ever written or allocated than it has room for.

    Args:
        stored: What ``encode`` gave.
        codec: How it was coded.
        pixels_CHW: Takes the pixels; contiguous, of the tile's type and size.

    Raises:
        ValueError: The bytes do not hold a tile of this type and size.
    """
    flat_N = pixels_CHW.reshape(-1)
    if codec == "raw":
        if len(stored) != flat_N.nbytes:
            raise ValueError(f"it has {len(stored)} bytes, and a tile of its kind has {flat_N.nbytes}")
        flat_N.view(np.uint8)[:] = np.frombuffer(stored, np.uint8)
        return
    try:
        progress = standalone.simple_decompress_into(bytes(stored), flat_N)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if progress.n_processed != flat_N.size or not progress.finished:
        raise ValueError(f"it does not hold exactly {flat_N.size} numbers")
    if pixels_CHW.dtype.kind in "iu":
        for before_HW, here_HW in pairwise(pixels_CHW):  # numpy's own accumulation takes a hundred times as long
            here_HW += before_HW


def most_bytes(codec: Codec, num_bytes: int) -> int:
    """How many bytes a tile of so many bytes can take at most; an index that says more is damaged."""
    return num_bytes if codec == "raw" else num_bytes + num_bytes // 64 + 64
