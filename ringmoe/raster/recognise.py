"""From files and folders to scenes that are understood, before any work starts.

What a scene is, is asked of three sources in turn, and what the first leaves open the next may say: the declarations
file, the file's own tags, its band names and numbers. What stays open is refused with a reason; nothing is guessed and
nothing is passed over in silence. In a folder

* a product of a known kind (a Sentinel SAFE folder, the files of a Landsat scene, ...) becomes its scenes or a
  refusal, and its files are no scenes of their own,
* any other file that begins like a GeoTIFF, JPEG, PNG or JPEG 2000 becomes a scene or a refusal,
* a file that is named like a raster but does not begin like one is a refusal,
* a product that is still packed (a ``.zip`` of Sentinel, a ``.tar`` of Landsat) is a refusal,
* a folder that cannot be listed is a refusal,
* any other file (sidecars: .json, .txt, .xml, .md, overviews .tif.ovr, ...) and any hidden one is listed as ignored.

A file that is named itself must be usable: what would be a refusal in a folder is an error there.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.errors import SceneError
from ringmoe.modality import ModalitySpec, Unit
from ringmoe.raster import headers, source
from ringmoe.raster.bands import Match, RasterBands, check_dtype, identify, names_of, naming_of
from ringmoe.raster.declare import Declaration, Declarations
from ringmoe.raster.grid import STORED, Grid, check_size
from ringmoe.raster.products.draft import assemble
from ringmoe.raster.products.find import find, refuse_packed
from ringmoe.raster.scene import UNKNOWN_SENSOR, BandSource, Refusal, Scene, UnusableError
from ringmoe.raster.walk import base_of, walk

_ROLE, _MODALITY, _UNITS = "RINGMOE_ROLE", "RINGMOE_MODALITY", "RINGMOE_UNITS"
_SENSOR, _ACQUIRED = "SENSOR", "ACQUIRED"

_BESIDE = frozenset({".ovr", ".msk"})
_NUM_LISTED = 10


@dataclass(frozen=True)
class Catalogue:
    """What was found.

    Attributes:
        scenes: Usable scenes, sorted by name.
        refused: Files and products that look like scenes and are not used, sorted by path.
        ignored: Files that are no rasters, sorted by path.
        base: The folder that the names of scenes are relative to.
        named: Names of the scenes that were named themselves, not found in a folder.
    """

    scenes: tuple[Scene, ...]
    refused: tuple[Refusal, ...]
    ignored: tuple[Path, ...] = ()
    base: Path = field(default_factory=Path)
    named: frozenset[str] = frozenset()


def recognise(
    paths: Sequence[Path],
    *,
    declarations: Declarations | None = None,
    modality: str | None = None,
    tile: int = 192,
    calibrate: bool = True,
) -> Catalogue:
    """Finds the scenes in files and folders and says what each of them is.

    Args:
        paths: Files and folders; folders are searched to the bottom, in sorted order.
        declarations: What is known of scenes beside what the files say.
        modality: The modality of all of them, where the files do not say it.
        tile: Side of the tiles that are to be cut, pixels; smaller scenes are refused.
        calibrate: Whether radar products are read as calibrated amplitudes; else their numbers stay as they are.

    Raises:
        SceneError: A path does not exist, a named file is no usable scene, or there is none at all.
        ConfigError: ``modality`` is not registered.
    """
    catalogue = survey(paths, declarations=declarations, modality=modality, tile=tile, calibrate=calibrate)
    if not catalogue.scenes:
        raise SceneError(_nothing_usable(paths, catalogue.refused, catalogue.ignored))
    return catalogue


def survey(
    paths: Sequence[Path],
    *,
    declarations: Declarations | None = None,
    modality: str | None = None,
    tile: int = 192,
    calibrate: bool = True,
) -> Catalogue:
    """Like ``recognise``, for people who want to see what there is: nothing usable in a folder is no error.

    Raises:
        SceneError: A path does not exist, or a named file is no usable scene.
        ConfigError: ``modality`` is not registered.
    """
    if modality is not None:
        registry.get(modality)
    known = declarations or Declarations()
    finds = _Finds()
    products, others = find(tuple(walk(paths)), paths)
    for product, kind in products:
        with finds.refusing(product.entry, product.explicit):
            drafts = kind.read(product, calibrate)
            wanted = [draft for draft in drafts if draft.modality == modality]  # a product may hold several
            scenes = assemble(product, wanted or drafts, tile)
            finds.add([_as_declared(scene, known.of(scene.name), modality) for scene in scenes], product.explicit)
    for file in others:
        with finds.refusing(file.path, file.explicit):
            refuse_packed(file.path)
            if file.explicit or not (_is_beside(file.path) or headers.driver_of(file.path) is None):
                finds.add([_examine(file.path, file.name, known.of(file.name), modality, tile)], file.explicit)
            else:
                finds.ignored.append(file.path)
    return Catalogue(
        tuple(sorted(finds.scenes, key=lambda scene: scene.name)),
        tuple(sorted(finds.refused, key=lambda refusal: refusal.path)),
        tuple(finds.ignored),
        base_of(paths),
        frozenset(finds.named),
    )


def _is_beside(path: Path) -> bool:
    """Whether a file is hidden, or only goes with another: overviews and masks are GeoTIFFs themselves."""
    return path.name.startswith(".") or (path.suffix.lower() in _BESIDE and path.with_suffix("").is_file())


class _Finds:
    """What was found so far."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self.refused: list[Refusal] = []
        self.ignored: list[Path] = []
        self.named: set[str] = set()

    def add(self, scenes: Sequence[Scene], explicit: bool) -> None:
        """Takes in the scenes of a file or a product."""
        self.scenes += scenes
        if explicit:
            self.named.update(scene.name for scene in scenes)

    @contextmanager
    def refusing(self, path: Path, explicit: bool) -> Iterator[None]:
        """Turns what cannot be used into a refusal, or into an error where it was named itself."""
        try:
            yield
        except UnusableError as unusable:
            if explicit:
                raise SceneError(f"{path}: {unusable.message}") from unusable
            self.refused.append(Refusal(path, unusable.code, unusable.message))


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
        naming, taken = naming_of(path.name, dataset.count) or (None, None)
        if naming is not None:
            bands = replace(bands, names=naming.names)
        match = _match(bands, entry, _modality(entry, tags, forced))
        spec = registry.get(match.modality)
        indices = [index for index in match.band_indices if index is not None]
        dtype = np.dtype(STORED.get(bands.dtype, bands.dtype))
        band_bytes = dtype.itemsize * (2 if bands.is_complex else 1)
        check_size(dataset, band_bytes, len(indices), path.stat().st_size, tile)
        grid = Grid.of(dataset)
        nodata = entry.nodata if entry.nodata is not None else dataset.nodatavals[indices[0] - 1]
        return Scene(
            path=path,
            name=name,
            modality=spec.key,
            bands=tuple(None if index is None else BandSource(index=index) for index in match.band_indices),
            units=_units(dataset, indices[0], dtype, spec, entry.units or tags.get(_UNITS)),
            dtype=dtype.name,
            sensor=entry.sensor or tags.get(_SENSOR) or (match.sensor if naming is None else naming.sensor),
            height=grid.height,
            width=grid.width,
            crs=grid.crs,
            transform=grid.transform,
            gsd=entry.gsd if entry.gsd is not None else grid.gsd,
            acquired=entry.acquired or tags.get(_ACQUIRED) or taken,
            nodata=_possible(nodata, dtype),
            synthetic=source.is_synthetic(dataset),
            control=grid.control,
            place=entry.place_of(name),
            member=entry.member,
        )


def _as_declared(scene: Scene, declared: Declaration | None, forced: str | None) -> Scene:
    """A product's scene with what its declaration adds.

    Raises:
        UnusableError: The declaration or the call contradicts the product.
    """
    entry = declared or Declaration(match=scene.name)
    for told, where in ((entry.modality, "its declaration"), (forced, "the call")):
        if told not in (None, scene.modality):
            raise UnusableError("conflict", f"{where} says {told}, but the product holds {scene.modality}")
    if entry.bands is not None or entry.units not in (None, scene.units):
        raise UnusableError("conflict", "its declaration says its bands or units, which the product says itself")
    return replace(
        scene,
        sensor=entry.sensor or scene.sensor,
        acquired=entry.acquired or scene.acquired,
        gsd=scene.gsd if entry.gsd is None else entry.gsd,
        nodata=scene.nodata if entry.nodata is None else _possible(entry.nodata, np.dtype(scene.dtype)),
        place=entry.place_of(scene.name),
        member=entry.member,
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
