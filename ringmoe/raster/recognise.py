"""From files and folders to scenes that are understood, before any work starts.

What a scene is, is asked of three sources in turn, and what the first leaves open the next may say: the declarations
file, the file's own tags, its band names and numbers. What stays open is refused with a reason; nothing is guessed and
nothing is passed over in silence. In a folder

* a file that begins like a GeoTIFF, JPEG, PNG or JPEG 2000 becomes a scene or a refusal,
* a file that is named like a raster but does not begin like one is a refusal,
* any other file (sidecars: .json, .txt, .xml, .md, ...) and any hidden one is listed as ignored.

A file that is named itself must be usable: what would be a refusal in a folder is an error there.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.errors import SceneError
from ringmoe.modality import ModalitySpec, Unit
from ringmoe.raster import headers, source
from ringmoe.raster.bands import Match, RasterBands, check_dtype, identify, names_of
from ringmoe.raster.declare import Declaration, Declarations
from ringmoe.raster.scene import UNKNOWN_SENSOR, Refusal, Scene, UnusableError

_ROLE, _MODALITY, _UNITS, _SYNTHETIC = "RINGMOE_ROLE", "RINGMOE_MODALITY", "RINGMOE_UNITS", "RINGMOE_SYNTHETIC"
_SENSOR, _ACQUIRED = "SENSOR", "ACQUIRED"

_STORED = {"complex64": "float32", "complex_int16": "int16"}  # type of the I and Q channels of complex bands

_MOST_BYTES_AT_ONCE = 1 << 30  # of one row of tiles, with the blocks of the file that it needs
_MOST_EXPANSION = 10_000  # bytes of pixels for each byte of the file: no codec does better on real data

_NUM_LISTED = 10


@dataclass(frozen=True)
class Catalogue:
    """What was found.

    Attributes:
        scenes: Usable scenes, sorted by name.
        refused: Files that look like rasters and are not used, sorted by path.
        ignored: Files that are no rasters, sorted by path.
    """

    scenes: tuple[Scene, ...]
    refused: tuple[Refusal, ...]
    ignored: tuple[Path, ...] = ()


def recognise(
    paths: Sequence[Path],
    *,
    declarations: Declarations | None = None,
    modality: str | None = None,
    tile: int = 192,
) -> Catalogue:
    """Finds the scenes in files and folders and says what each of them is.

    Args:
        paths: Files and folders; folders are searched to the bottom, in sorted order.
        declarations: What is known of scenes beside what the files say.
        modality: The modality of all of them, where the files do not say it.
        tile: Side of the tiles that are to be cut, pixels; smaller scenes are refused.

    Raises:
        SceneError: A path does not exist, a named file is no usable scene, or there is none at all.
        ConfigError: ``modality`` is not registered.
    """
    if modality is not None:
        registry.get(modality)
    known = declarations or Declarations()
    scenes, refused, ignored = [], [], []
    for path, name, explicit in _walk(paths):
        try:
            if explicit or (not path.name.startswith(".") and headers.driver_of(path)):
                scenes.append(_examine(path, name, known.of(name), modality, tile))
            else:
                ignored.append(path)
        except UnusableError as unusable:
            if explicit:
                raise SceneError(f"{path}: {unusable.message}") from unusable
            refused.append(Refusal(path, unusable.code, unusable.message))
    if not scenes:
        raise SceneError(_nothing_usable(paths, refused, ignored))
    return Catalogue(tuple(sorted(scenes, key=lambda scene: scene.name)), tuple(refused), tuple(ignored))


def _nothing_usable(paths: Sequence[Path], refused: Sequence[Refusal], ignored: Sequence[Path]) -> str:
    """The message for folders without a usable scene."""
    lines = [f"no usable scene in {', '.join(map(str, paths)) or 'no path at all'}"]
    counts = Counter(refusal.code for refusal in refused) + Counter({"not a raster": len(ignored)})
    if not counts:
        return f"{lines[0]}: there is no file. Name folders that hold GeoTIFF, JPEG, PNG or JPEG 2000 scenes"
    lines[0] += f": {', '.join(f'{num} {code}' for code, num in counts.most_common())}"
    lines += [f"  {refusal.path}: {refusal.message}" for refusal in refused[:_NUM_LISTED]]
    if len(refused) > _NUM_LISTED:
        lines.append(f"  and {len(refused) - _NUM_LISTED} more")
    return "\n".join(lines)


def _walk(paths: Sequence[Path]) -> Iterator[tuple[Path, str, bool]]:
    """Every file once: path, name relative to the deepest folder that holds all of ``paths``, whether it was named.

    Raises:
        SceneError: A path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise SceneError(f"{path} does not exist; name a scene or a folder of scenes")
    absolute = [Path(os.path.abspath(path)) for path in paths]
    base = os.path.commonpath([path.parent for path in absolute]) if paths else ""
    named = [path for path in absolute if not path.is_dir()]
    found = sorted(file for path in absolute if path.is_dir() for file in _files(path))
    seen: set[Path] = set()
    for file, explicit in [(file, True) for file in named] + [(file, False) for file in found]:
        real = file.resolve()
        if real not in seen:
            seen.add(real)
            yield file, file.relative_to(base).as_posix(), explicit


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; linked folders are followed, each once."""
    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:
            folders.clear()  # a link that leads back
            continue
        seen.add(real)
        yield from (Path(parent, file) for file in files)


def _examine(path: Path, name: str, declared: Declaration | None, forced: str | None, tile: int) -> Scene:
    """Asks the three sources what a raster is.

    Raises:
        UnusableError: It is no usable scene.
    """
    entry = declared or Declaration(match=name)
    with source.open_raster(path) as dataset:
        tags = dataset.tags()
        role = tags.get(_ROLE, "scene")
        if role != "scene":
            raise UnusableError("label", f"its tag {_ROLE} says that it is no scene but: {role}")
        bands = _bands(dataset)
        match = _match(bands, entry, _modality(entry, tags, forced))
        spec = registry.get(match.modality)
        indices = [index for index in match.band_indices if index is not None]
        dtype = np.dtype(_STORED.get(bands.dtype, bands.dtype))
        band_bytes = dtype.itemsize * (2 if bands.is_complex else 1)
        _check_size(dataset, band_bytes, len(indices), path.stat().st_size, tile)
        crs, transform, gsd = source.geolocation(dataset)
        nodata = entry.nodata if entry.nodata is not None else dataset.nodatavals[indices[0] - 1]
        return Scene(
            path=path,
            name=name,
            modality=spec.key,
            band_indices=match.band_indices,
            units=_units(dataset, indices[0], dtype, spec, entry.units or tags.get(_UNITS)),
            dtype=dtype.name,
            sensor=entry.sensor or tags.get(_SENSOR) or match.sensor,
            height=dataset.height,
            width=dataset.width,
            crs=crs,
            transform=transform,
            gsd=entry.gsd if entry.gsd is not None else gsd,
            acquired=entry.acquired or tags.get(_ACQUIRED),
            nodata=_possible(nodata, dtype),
            synthetic=tags.get(_SYNTHETIC, "").casefold() in {"1", "true", "yes"},
        )


def _bands(dataset: Any) -> RasterBands:
    """What an open raster says of its bands.

    Raises:
        UnusableError: Bands of different types, or of several images.
    """
    if dataset.subdatasets:
        raise UnusableError("format", f"it holds {len(dataset.subdatasets)} images; write each to a file of its own")
    if len(set(dataset.dtypes)) != 1:
        raise UnusableError(
            "wrong_dtype", f"its bands are of different types ({', '.join(dataset.dtypes)}); split the file"
        )
    colours = [colour.name for colour in dataset.colorinterp]
    return RasterBands(names_of(dataset.descriptions, colours), dataset.dtypes[0])


def _modality(entry: Declaration, tags: dict[str, str], forced: str | None) -> str | None:
    """The modality that somebody has named: in the declarations, in a tag or in the call.

    Raises:
        UnusableError: Declaration or tag contradict the call, or the tag names none that exists.
    """
    told = entry.modality or tags.get(_MODALITY)
    if told is not None and forced is not None and told != forced:
        where = "its declaration" if entry.modality else f"its tag {_MODALITY}"
        raise UnusableError("conflict", f"{where} says {told}, but it was given as {forced}. Correct one of the two")
    key = told or forced
    if key is not None and key not in {spec.key for spec in registry.known()}:
        raise UnusableError("conflict", f"its tag {_MODALITY} says {key}, and no such modality is registered")
    return key


def _match(bands: RasterBands, entry: Declaration, modality: str | None) -> Match:
    """The scene's modality and bands: as declared, else as the names say."""
    if entry.band_indices is None or entry.modality is None:
        return identify(bands, modality)
    spec = registry.get(entry.modality)
    check_dtype(bands, spec)
    highest = max(index for index in entry.band_indices if index is not None)
    if highest > len(bands.names):
        raise UnusableError("wrong_bands", f"its declaration names band {highest} of {spec.key}, but it has {bands}")
    return Match(spec.key, entry.band_indices, UNKNOWN_SENSOR)


def _check_size(dataset: Any, band_bytes: int, num_wanted: int, file_bytes: int, tile: int) -> None:
    """Refuses scenes that hold no tile, and headers whose promises would cost memory or time without end.

    Raises:
        UnusableError: Too small, too large, or larger than the file can be.
    """
    height, width = dataset.height, dataset.width
    if min(height, width) < tile:
        raise UnusableError("too_small", f"it has {height} x {width} pixels, less than a tile of {tile} x {tile}")
    promised = height * width * dataset.count * band_bytes
    if promised > _MOST_EXPANSION * file_bytes:
        raise UnusableError(
            "too_large",
            f"its header promises {height} x {width} pixels ({promised:,} bytes), but the file has {file_bytes:,} "
            "bytes: the header is damaged, or almost all of the scene is empty. Crop it",
        )
    block_rows, block_cols = dataset.block_shapes[0]
    needed = width * (tile + block_rows) * num_wanted * band_bytes
    if needed > _MOST_BYTES_AT_ONCE:
        raise UnusableError(
            "too_large",
            f"one row of tiles of its {height} x {width} pixels (blocks of {block_rows} x {block_cols}) takes "
            f"{needed:,} bytes, and {_MOST_BYTES_AT_ONCE:,} are allowed. Write it in lower blocks, or cut it",
        )


def _units(dataset: Any, index: int, dtype: np.dtype[Any], spec: ModalitySpec, told: str | None) -> Unit:
    """What the numbers are: as declared, the only choice there is, or what can be told from them without doubt.

    Whole numbers without any further word are digital numbers. Of the units only decibels may be negative throughout.

    Raises:
        UnusableError: More than one of the modality's units is possible.
    """
    units: dict[str, Unit] = {unit: unit for unit in spec.units}
    if told is not None and told not in units:
        raise UnusableError("conflict", f"its units are said to be {told}, but {spec.key} knows {', '.join(units)}")
    if told is not None:
        return units[told]
    if len(units) == 1:
        return spec.units[0]
    if dtype.kind in "iu" and "dn" in units:
        return units["dn"]
    if "db" in units and _mostly_negative(dataset, index):
        return units["db"]
    raise UnusableError("unknown_units", f"its numbers may be {' or '.join(units)}. Declare the scene's units")


def _mostly_negative(dataset: Any, index: int) -> bool:
    """Whether more than half of the numbers with data in the middle of a band are negative."""
    values = source.sample(dataset, index)
    values = values[np.isfinite(values) & (values != 0)]
    return bool(np.count_nonzero(values < 0) * 2 > values.size)


def _possible(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """The no-data value if pixels of this type can hold it at all."""
    if nodata is None:
        return None
    if dtype.kind == "f":
        return float(nodata)
    limits = np.iinfo(dtype)
    fits = math.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max
    return float(nodata) if fits else None
