"""What a reader says of a scene, and the scene that the headers of its files make of it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ringmoe import modality as registry
from ringmoe.batch import Radiometry
from ringmoe.modality import Unit
from ringmoe.raster import source
from ringmoe.raster.bands import RasterBands, check_dtype
from ringmoe.raster.grid import STORED, Grid, check_size
from ringmoe.raster.scene import BandSource, ControlPoint, ProductInfo, Scene, UnusableError, naming
from ringmoe.raster.walk import FoundFile

_RASTERS = frozenset({".tif", ".tiff", ".jp2"})
_PAIRS = {"int16": "complex_int16", "float32": "complex64"}  # two real bands that are the parts of a complex one


@dataclass(frozen=True, kw_only=True)
class FoundProduct:
    """A product that was told by its names.

    Attributes:
        root: Its folder.
        entry: The metadata file that names all others.
        name: Its relative name.
        members: All files that belong to it: none of them is a scene of its own.
        explicit: It was named itself.
        stem: What the names of its files begin with, where others may lie in the same folder.
    """

    root: Path
    entry: Path
    name: str
    members: tuple[FoundFile, ...]
    explicit: bool
    stem: str = ""

    def beside(self) -> list[str]:
        """Names of the files in the folder that begin with the stem, also of those that were not named with it."""
        return sorted(path.name for path in self.root.iterdir() if path.name.startswith(self.stem) and path.is_file())


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One scene of a product, as its metadata describes it.

    Attributes:
        modality: Key of the modality.
        bands: Where each band lies; those that the product does not have are left out.
        units: What the numbers are once they are read.
        sensor: Instrument.
        info: What else the product says.
        part: Which part of the product it is, where this has several scenes.
        acquired: Acquisition time, ISO 8601.
        nodata: Value of pixels without data.
        radiometry: How the numbers become a physical quantity.
        size: Rows and columns that the metadata promises; None where it does not say.
        gsd: Ground sampling distance in metres, where the files themselves have no place on the ground.
        control: Control points, where the files themselves have none.
    """

    modality: str
    bands: Mapping[str, BandSource] = field(hash=False)
    units: Unit
    sensor: str
    info: ProductInfo
    part: str = ""
    acquired: str | None = None
    nodata: float | None = None
    radiometry: Radiometry | None = None
    size: tuple[int, int] | None = None
    gsd: float | None = None
    control: tuple[ControlPoint, ...] = ()


def corner_control(size: tuple[int, int], places: Sequence[tuple[float, float]]) -> tuple[ControlPoint, ...]:
    """Control points at the outer corners of an image.

    Args:
        size: Rows and columns.
        places: Longitude and latitude of upper left, upper right, lower right and lower left corner.
    """
    height, width = size
    corners = ((0, 0), (0, width), (height, width), (height, 0))
    return tuple((float(row), float(col), *place) for (row, col), place in zip(corners, places, strict=True))


def assemble(found: FoundProduct, drafts: list[Draft], tile: int) -> list[Scene]:
    """The scenes of a product.

    Args:
        found: The product.
        drafts: What its reader says of each scene.
        tile: Side of the tiles that are to be cut, pixels.

    Raises:
        UnusableError: A file is missing or damaged, or the files do not lie on one grid.
    """
    scenes = [_assemble(found, draft, tile) for draft in drafts]
    used = {file for scene in scenes for file in scene.files}
    used |= {found.root / mask.file for scene in scenes for mask in scene.masks}
    rasters = {file.path for file in found.members if file.path.suffix.lower() in _RASTERS}
    unused = len(rasters - used)
    return [
        replace(scene, product=replace(scene.product, unused=unused)) for scene in scenes if scene.product is not None
    ]


def _assemble(found: FoundProduct, draft: Draft, tile: int) -> Scene:
    spec = registry.get(draft.modality)
    bands = tuple(draft.bands.get(name) for name in spec.bands)
    present = [band for band in bands if band is not None]
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        repeats = {band.file: band.repeat for band in present}
        for band in present:
            if band.file not in files:
                files[band.file] = _opened(found, band.file, stack)
        grid = _common_grid(files, repeats, draft.size)
        dtype = _common_dtype(files, present)
        synthetic = any(map(source.is_synthetic, files.values()))
        check_dtype(RasterBands(tuple(draft.bands), dtype), spec)
        stored = np.dtype("float32" if any(band.is_calibrated for band in present) else STORED.get(dtype, dtype))
        each = stored.itemsize * (2 if spec.is_complex else 1)
        for name, dataset in files.items():
            with naming(name):
                size = (found.root / name).stat().st_size
                check_size(dataset, each, len(present), size, -(-tile // repeats[name]))
    return Scene(
        path=found.root,
        name="/".join(filter(None, (found.name, draft.part))),
        modality=spec.key,
        bands=bands,
        units=draft.units,
        dtype=stored.name,
        sensor=draft.sensor,
        height=grid.height,
        width=grid.width,
        crs=grid.crs,
        transform=grid.transform,
        gsd=draft.gsd if grid.gsd is None else grid.gsd,
        acquired=draft.acquired,
        nodata=draft.nodata,
        synthetic=synthetic,
        control=grid.control if grid.control or grid.transform is not None else draft.control,
        radiometry=draft.radiometry,
        product=draft.info,
    )


def _opened(found: FoundProduct, name: str, stack: ExitStack) -> Any:
    """Opens a band file.

    Raises:
        UnusableError: It is missing or no raster; the message names it.
    """
    path = found.root / name
    if not path.is_file():
        raise UnusableError(
            "missing_part", f"{name} is missing, and {found.entry.name} lists it. Fetch the product again, whole"
        )
    with naming(name):
        return stack.enter_context(source.open_raster(path))


def _common_grid(files: dict[str, Any], repeats: dict[str, int], size: tuple[int, int] | None) -> Grid:
    """The grid that all files share once the pixels of the coarser ones are repeated.

    Raises:
        UnusableError: They do not, or it is not of the promised size.
    """
    finest_first = sorted(files.items(), key=lambda file: repeats[file[0]])
    (first_name, first), *others = [
        (name, _grid_of(name, dataset).finer(repeats[name])) for name, dataset in finest_first
    ]
    for name, grid in others:
        # control points, and with them the sampling distance, may differ in their last digits
        if replace(grid, control=(), gsd=None) != replace(first, control=(), gsd=None):
            raise UnusableError(
                "conflict",
                f"{first_name} has {first}, but {name} has {grid}. The bands of one scene lie on one grid: fetch the "
                "product again",
            )
    if size is not None and (first.height, first.width) != size:
        raise UnusableError(
            "conflict",
            f"{first_name} has {first.height} x {first.width} pixels, but the metadata promises {size[0]} x {size[1]}: "
            "fetch the product again",
        )
    return first


def _grid_of(name: str, dataset: Any) -> Grid:
    try:
        return Grid.of(dataset)
    except source.ERRORS as error:
        raise UnusableError(
            "unreadable",
            f"{name}: its header is damaged: {source.reason(error, Path(dataset.name))}. Fetch the product again",
        ) from error


def _common_dtype(files: dict[str, Any], present: list[BandSource]) -> str:
    """The type of all bands; two real bands that are the parts of one count as complex.

    Raises:
        UnusableError: A band is not there, or types differ.
    """
    dtypes: dict[str, str] = {}
    for band in present:
        dataset = files[band.file]
        highest = max(band.index, band.imaginary or 0)
        if highest > dataset.count:
            raise UnusableError(
                "wrong_bands", f"{band.file} has {dataset.count} bands, but band {highest} was expected in it"
            )
        dtype = dataset.dtypes[band.index - 1]
        dtypes[band.file] = dtype if band.imaginary is None else _PAIRS.get(dtype, dtype)
    if len(set(dtypes.values())) != 1:
        listed = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
        raise UnusableError("wrong_dtype", f"its bands are of different types ({listed})")
    return next(iter(dtypes.values()))
