"""Products among files, told by the names of their files alone."""

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ringmoe.raster.products import alos, gaofen, gaofen3, landsat, planet, sentinel1, sentinel2
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.scene import UnusableError
from ringmoe.raster.walk import FoundFile, base_of

ReadProduct = Callable[[FoundProduct, bool], list[Draft]]
"""From a product, and whether radar is to be calibrated, to its scenes."""


@dataclass(frozen=True)
class Kind:
    """How one kind of product is told.

    Attributes:
        entry: Name of the metadata file that every product has. Where it has a group ``stem``, the product's files are
            those of the same folder whose names begin with it; else all below the folder.
        read: Its reader.
        prefixes: What stands before the stem in the names of the product's files.
    """

    entry: re.Pattern[str]
    read: ReadProduct
    prefixes: tuple[str, ...] = ("",)


def _read_incomplete(found: FoundProduct, calibrate: bool) -> list[Draft]:
    raise UnusableError(
        "missing_part",
        "it is named like a product of Sentinel, but has neither MTD_MSIL1C.xml or MTD_MSIL2A.xml (Sentinel-2) nor "
        "manifest.safe (Sentinel-1). Fetch the product again, whole",
    )


KINDS = (
    Kind(sentinel2.ENTRY, sentinel2.read),
    Kind(sentinel1.ENTRY, sentinel1.read),
    Kind(landsat.ENTRY, landsat.read),
    Kind(gaofen3.ENTRY, gaofen3.read),
    Kind(gaofen.ENTRY, gaofen.read),
    Kind(planet.ENTRY, planet.read),
    Kind(alos.ENTRY, alos.read, alos.PREFIXES),
)
"""Earlier kinds take their files first: both Sentinels have a ``manifest.safe``."""

_PACKED = re.compile(r"(S[12][A-D]_|L[CO]0[89]_|GF[123]\w?_).*\.(zip|tar|tar\.gz|tgz)", re.I)

_INCOMPLETE = Kind(re.compile(r"(?!)"), _read_incomplete)
_SAFE = ".safe"


def find(files: Sequence[FoundFile], named: Sequence[Path]) -> tuple[list[tuple[FoundProduct, Kind]], list[FoundFile]]:
    """Parts files into products and others.

    Args:
        files: All files.
        named: What was named; a folder that holds one product and nothing else counts as that product.

    Returns:
        Products in the order of their names, and the files that belong to none.
    """
    claims = _Claims(files, base_of(named))
    members: dict[_Claim, list[FoundFile]] = {}
    others: list[FoundFile] = []
    for file in files:
        claim = claims.on(file.path)
        (others if claim is None else members.setdefault(claim, [])).append(file)
    wholes = {Path(os.path.abspath(path)) for path in named}
    crowded = {parent for file in others for parent in file.path.parents} & wholes
    shared = Counter(claim.root for claim in members)
    products = [
        (_product(claim, own, wholes, alone=claim.root not in crowded and shared[claim.root] == 1), claim.kind)
        for claim, own in members.items()
    ]
    return sorted(products, key=lambda product: product[0].name), others


def refuse_packed(path: Path) -> None:
    """Says of a packed product what is to be done with it.

    Raises:
        UnusableError: The file is named like one.
    """
    if _PACKED.fullmatch(path.name):
        raise UnusableError("format", "it is named like a packed product, and these are not read; unpack it")


@dataclass(frozen=True)
class _Claim:
    """A product's claim on files: all below ``root``, or those beside ``entry`` whose names begin with ``stem``."""

    kind: Kind
    root: Path
    entry: Path
    stem: str = ""


class _Claims:
    """All claims, laid out so that each file finds its own at once."""

    def __init__(self, files: Sequence[FoundFile], base: Path) -> None:
        self._base = base
        self._roots: dict[Path, _Claim] = {}
        self._stems: dict[Path, dict[str, _Claim]] = {}
        self._of_folder: dict[Path, _Claim | None] = {}
        for kind in KINDS:
            for file in files:
                if match := kind.entry.fullmatch(file.path.name):
                    self._add(_Claim(kind, file.path.parent, file.path, match.groupdict().get("stem", "")))
        self._sorted = {folder: sorted(stems) for folder, stems in self._stems.items()}

    def on(self, path: Path) -> _Claim | None:
        """The claim on a file: of the outermost folder that is a product, else by the beginning of its name."""
        folder = path.parent
        if folder not in self._of_folder:
            outward = [*reversed(folder.parents), folder]
            claims = (self._roots.get(parent) or self._incomplete(parent) for parent in outward)
            self._of_folder[folder] = next((claim for claim in claims if claim is not None), None)
        if (claim := self._of_folder[folder]) is not None:
            return claim
        stems = self._sorted.get(folder, [])
        before = bisect_right(stems, path.name)
        if before and path.name.startswith(stem := stems[before - 1]):
            return self._stems[folder][stem]
        return None

    def _add(self, claim: _Claim) -> None:
        """Notes a claim; the first on a folder or a stem counts."""
        if claim.stem:
            for prefix in claim.kind.prefixes:
                self._stems.setdefault(claim.root, {}).setdefault(f"{prefix}{claim.stem}", claim)
        else:
            self._roots.setdefault(claim.root, claim)

    def _incomplete(self, folder: Path) -> _Claim | None:
        """The claim of a folder that is named like a product of Sentinel but has no metadata."""
        seen = self._base in folder.parents  # what lies above is not what was named
        return _Claim(_INCOMPLETE, folder, folder) if seen and folder.suffix.lower() == _SAFE else None


def _product(claim: _Claim, own: Sequence[FoundFile], wholes: set[Path], *, alone: bool) -> FoundProduct:
    """The product of a claim; its name is that of its folder, and of its stem where it has one."""
    below = len(own[0].path.relative_to(claim.root).parts)
    parts = PurePosixPath(own[0].name).parts[:-below] or (() if claim.stem else (claim.root.name,))
    return FoundProduct(
        root=claim.root,
        entry=claim.entry,
        name="/".join(filter(None, (*parts, claim.stem.rstrip("_")))),
        members=tuple(own),
        explicit=claim.entry in wholes or (alone and claim.root in wholes),
        stem=claim.stem,
    )
