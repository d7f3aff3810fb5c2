"""What coding the pixels of shards without loss saves and costs, on real scenes, beside other codecs.

    python benchmarks/lossless.py

Builds shards of the real scenes in ``../shared/data`` (another folder: RINGMOE_REAL_DATA) and takes some tiles of every
modality and type. Every codec codes and decodes the same tiles in turn, one thread, CPU time; each is first checked to
give back every bit. Sizes are shares of the raw pixels, times seconds for a gigabyte of them; in a ratio of a peer's to
ours, above 1 means that ours is smaller or quicker.

* raw: the pixels' bytes;
* npz: deflate, level 6, as ``np.savez_compressed`` uses it;
* zstd: level 3, of the plain bytes;
* blosc2: zstd, level 1, of shuffled bits;
* PNG, JPEG-LS, JPEG 2000, JPEG XL: lossless, an image for each channel, or the three colours in one where the codec
  knows how they hang together.
"""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from harness import CONSOLE, Contestant, Found, claim, collect, one_thread, progress, take_turns

from ringmoe.data.build import build
from ringmoe.data.codec import decode, encode
from ringmoe.data.plan import BuildConfig
from ringmoe.data.read import TileReader
from ringmoe.raster.declare import Declarations
from ringmoe.raster.tiling import TilingConfig

FAMILY = "Lossless codecs"
ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RINGMOE_REAL_DATA", ROOT.parent / "shared" / "data"))
_FOLDERS = ("optical", "multispectral", "sar_l1", "sar_l2", "height", "paired_s1s2")
_TILE = 128  # pixels: the smallest scene has no more
_MOST_TILES = 24  # of each modality and type
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Way:
    """A codec: a tile (C, H, W) to what is stored and back into an array; ``fits`` says which types it takes."""

    encode: Callable[[Array], Any]
    decode: Callable[[Any, Array], Any]
    fits: Callable[[Array], bool] = lambda tile_CHW: True


def _is_image(tile_CHW: Array) -> bool:
    return tile_CHW.dtype in (np.uint8, np.uint16)


def _bytes(unpack: Callable[..., Any], stored: bytes, out_CHW: Array) -> None:
    out_CHW.reshape(-1).view(np.uint8)[:] = np.frombuffer(unpack(stored), np.uint8)


def _images(pack: Callable[..., Any], unpack: Callable[..., Any], *, colours: bool) -> Way:
    """A codec of images: one for each channel, or of three channels together."""

    def code(tile_CHW: Array) -> list[bytes]:
        if colours and len(tile_CHW) == 3:
            return [pack(np.ascontiguousarray(tile_CHW.transpose(1, 2, 0)))]
        return [pack(channel_HW) for channel_HW in tile_CHW]

    def back(stored: list[bytes], out_CHW: Array) -> None:
        if len(stored) == 1 and len(out_CHW) == 3:
            out_CHW[:] = unpack(stored[0]).transpose(2, 0, 1)
        else:
            for content, out_HW in zip(stored, out_CHW, strict=True):
                out_HW[:] = unpack(content)

    return Way(code, back, _is_image)


def _blosc(tile_CHW: Array) -> bytes:
    content = tile_CHW.tobytes()
    size = tile_CHW.itemsize
    return bytes(imagecodecs.blosc2_encode(content, level=1, compressor="zstd", shuffle="bitshuffle", typesize=size))


_WAYS = {
    "ours": Way(lambda tile: encode(tile, "pco"), lambda stored, out: decode(stored, "pco", out)),
    "raw": Way(lambda tile: encode(tile, "raw"), lambda stored, out: decode(stored, "raw", out)),
    "npz": Way(lambda tile: zlib.compress(tile.tobytes(), 6), partial(_bytes, zlib.decompress)),
    "zstd": Way(
        lambda tile: imagecodecs.zstd_encode(tile.tobytes(), level=3), partial(_bytes, imagecodecs.zstd_decode)
    ),
    "blosc2": Way(_blosc, partial(_bytes, imagecodecs.blosc2_decode)),
    "PNG": _images(imagecodecs.png_encode, imagecodecs.png_decode, colours=True),
    "JPEG-LS": _images(imagecodecs.jpegls_encode, imagecodecs.jpegls_decode, colours=False),
    "JPEG 2000": _images(
        partial(imagecodecs.jpeg2k_encode, level=0, reversible=True), imagecodecs.jpeg2k_decode, colours=True
    ),
    "JPEG XL": _images(
        partial(imagecodecs.jpegxl_encode, lossless=True, effort=1), imagecodecs.jpegxl_decode, colours=True
    ),
}


def real_tiles(folder: Path) -> dict[str, list[Array]]:
    """Some tiles of the real scenes by modality and type, spread over all of them."""
    config = BuildConfig(tiling=TilingConfig(tile=_TILE, stride=_TILE // 2))
    declarations = Declarations.load(ROOT / "docs" / "examples" / "scenes.yaml")
    manifest = build([DATA / name for name in _FOLDERS], folder, config, declarations=declarations).manifest
    tiles: dict[str, list[Array]] = {}
    for key in manifest.modalities:
        reader = TileReader([manifest], key, "train")
        for sample in np.random.default_rng(0).permutation(reader.num_samples):
            (block,), _ = reader.read(np.array([sample]))
            kept = tiles.setdefault(f"{key}, {block.pixels_BCHW.dtype}", [])
            if len(kept) < _MOST_TILES:
                kept.append(block.pixels_BCHW[0])
        reader.close()
    return tiles


def measure(setting: str, tiles: list[Array]) -> Iterator[Found]:
    """The claims about the tiles of one modality and type: size, decoding, encoding."""
    ways = {name: way for name, way in _WAYS.items() if way.fits(tiles[0])}
    stored = {name: [way.encode(tile) for tile in tiles] for name, way in ways.items()}
    out = np.empty_like(tiles[0])
    for name, way in ways.items():
        for content, tile in zip(stored[name], tiles, strict=True):
            way.decode(content, out)
            assert out.tobytes() == tile.tobytes(), f"{name} changed a tile of {setting}"

    def decoding(name: str) -> None:
        for content in stored[name]:
            ways[name].decode(content, out)

    def encoding(name: str) -> None:
        for tile in tiles:
            ways[name].encode(tile)

    gigabytes = sum(tile.nbytes for tile in tiles) / 1e9
    sizes = {name: [sum(map(_length, contents)) / gigabytes / 1e9] for name, contents in stored.items()}
    yield from _beside(f"{setting}, size", sizes, "of raw")
    for words, work in (("decoding", decoding), ("encoding", encoding)):
        seconds = take_turns({name: Contestant(partial(work, name)) for name in ways}, 3)
        yield from _beside(
            f"{setting}, {words}",
            {name: [spent / gigabytes for spent in turns] for name, turns in seconds.items()},
            "s/GB",
        )


def _length(content: bytes | list[bytes]) -> int:
    return sum(map(len, content)) if isinstance(content, list) else len(content)


def _beside(setting: str, figures: dict[str, list[float]], unit: str) -> Iterator[Found]:
    """Ours beside each peer; better than the plain baseline in everything is the target."""
    for name in list(figures)[1:]:
        target = ">= 1" if name == "npz" else ""
        yield claim(f"{name} / ours", setting, figures["ours"], figures[name], target, unit=unit)


def claims() -> Iterator[Found]:
    """All claims of the family; none where there are no real scenes."""
    one_thread()
    if not (DATA / "optical").is_dir():
        CONSOLE.print(f"no real scenes in {DATA}: name another folder with RINGMOE_REAL_DATA")
        return
    with tempfile.TemporaryDirectory() as folder:
        tiles = real_tiles(Path(folder) / "shards")
    for setting in progress(list(tiles), FAMILY):
        yield from measure(setting, tiles[setting])


if __name__ == "__main__":
    collect(claims())
