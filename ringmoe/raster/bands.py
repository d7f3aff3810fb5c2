"""Which band of a file is which band of a modality. All that is known of names stands in the tables below.

Bands are told by their descriptions, then by their colour interpretation; a name that equals a band of a registered
modality needs no entry here. A modality fits where each of its bands is found exactly once (those of a modality with
optional bands may be missing, and are declared absent). Of several that fit, the one that uses most bands wins. Bands
without a name decide nothing: such a file is refused with the remedy, never guessed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ringmoe import modality as registry
from ringmoe.modality import ModalitySpec
from ringmoe.raster.scene import UNKNOWN_SENSOR, UnusableError

ALIASES = {
    "R": re.compile(r"red", re.I),
    "G": re.compile(r"green", re.I),
    "B": re.compile(r"blue", re.I),
    "NIR": re.compile(r"near[ _-]?infra[ _-]?red", re.I),
    "A": re.compile(
        r"((sigma0|gamma0|beta0|amplitude|intensity)[ _]?)?(hh|hv|vh|vv)([ _]?db)?|amplitude|intensity", re.I
    ),
}
"""Other names of a modality's band; the whole name must match."""


@dataclass(frozen=True)
class Convention:
    """How one instrument's bands are numbered.

    Attributes:
        sensor: The instrument.
        names: Pattern of all descriptions of a file in order, joined by spaces.
        dtypes: Types of its products.
        bands: Description to band.
    """

    sensor: str
    names: re.Pattern[str]
    dtypes: frozenset[str]
    bands: Mapping[str, str] = field(hash=False)


CONVENTIONS = (
    Convention(
        sensor="Sentinel-2 MSI",
        names=re.compile(r"B(0[1-9]|8A|1[0-2])( B(0[1-9]|8A|1[0-2]))*"),
        dtypes=frozenset({"uint16", "int16"}),
        bands={"B02": "B", "B03": "G", "B04": "R", "B08": "NIR"},
    ),
    Convention(
        # without the zero only B8A tells it from Landsat
        sensor="Sentinel-2 MSI",
        names=re.compile(r"(?=.*B8A)B([1-9]|8A|1[0-2])( B([1-9]|8A|1[0-2]))*"),
        dtypes=frozenset({"uint16", "int16"}),
        bands={"B2": "B", "B3": "G", "B4": "R", "B8": "NIR"},
    ),
    Convention(
        # the older Landsats number their bands otherwise, but their products are of 8 bits
        sensor="Landsat-8/9 OLI",
        names=re.compile(r"B1 B2 B3 B4 B5 B6 B7"),
        dtypes=frozenset({"uint16"}),
        bands={"B2": "B", "B3": "G", "B4": "R", "B5": "NIR"},
    ),
)
"""Instruments that number their bands; the first whose names and types match is taken."""


@dataclass(frozen=True)
class Naming:
    """How one maker names files whose bands have no names.

    Attributes:
        sensor: The instrument.
        file: Pattern of the file's name; a group ``year``, ``month``, ``day`` each for the time.
        names: Bands in the order of the file; another number of bands is another product.
    """

    sensor: str
    file: re.Pattern[str]
    names: tuple[str, ...]


NAMINGS = (
    Naming(
        sensor="NAIP",
        file=re.compile(
            r"m_\d{7}_(ne|nw|se|sw)_\d{1,2}_(\d+|h)_(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(_\d{8})?\.tif", re.I
        ),
        names=("R", "G", "B", "NIR"),
    ),
)
"""Makers whose files name themselves but not their bands: aerial quarter quads of the USDA."""


def naming_of(file: str, num_bands: int) -> tuple[Naming, str] | None:
    """The naming that a file's name and number of bands follow, and the day of acquisition (ISO 8601)."""
    for naming in NAMINGS:
        if (match := naming.file.fullmatch(file)) and num_bands == len(naming.names):
            return naming, f"{match['year']}-{match['month']}-{match['day']}"
    return None


_NOT_SCATTERING = re.compile(r"[TC][1-4][1-4]([ _]?(re|im)\w*)?", re.I)


@dataclass(frozen=True)
class RasterBands:
    """What a file says of its bands.

    Attributes:
        names: Description of each band, else its colour interpretation if that is a colour, else None.
        dtype: Type of all bands (rasterio's name).
    """

    names: tuple[str | None, ...]
    dtype: str

    @property
    def is_complex(self) -> bool:
        """Whether the bands hold complex numbers."""
        return self.dtype.startswith("complex")

    def __str__(self) -> str:
        named = ", ".join(name or "unnamed" for name in self.names[:16])
        more = f", {len(self.names) - 16} more" if len(self.names) > 16 else ""
        return f"{len(self.names)} {'band' if len(self.names) == 1 else 'bands'} of {self.dtype} ({named}{more})"


@dataclass(frozen=True)
class Match:
    """How a file's bands make a modality.

    Attributes:
        modality: Its key.
        band_indices: Raster band (from 1) of each of the modality's bands; None where the file lacks it.
        sensor: The instrument whose convention the names follow.
    """

    modality: str
    band_indices: tuple[int | None, ...]
    sensor: str = UNKNOWN_SENSOR


def names_of(descriptions: Sequence[str | None], colours: Sequence[str]) -> tuple[str | None, ...]:
    """Names of the bands; "gray", "undefined" and "alpha" say nothing (many writers mark near infrared as alpha)."""
    told = {"red", "green", "blue"}
    return tuple(
        description.strip() if description and description.strip() else colour if colour in told else None
        for description, colour in zip(descriptions, colours, strict=True)
    )


def identify(bands: RasterBands, forced: str | None = None) -> Match:
    """Finds the modality that a file's bands make, or the bands of the ``forced`` modality among them.

    Raises:
        UnusableError: No modality fits, or which one does is not certain.
    """
    if any(_NOT_SCATTERING.fullmatch(name) for name in bands.names if name) and not bands.is_complex:
        raise UnusableError(
            "not_scattering",
            f"it has {bands}: a coherency or covariance matrix, not a scattering matrix. It is averaged over looks, so "
            "the complex HH, HV, VH, VV cannot be recovered. Use the single-look complex product of the same scene",
        )
    if forced is not None:
        return _fit_forced(bands, registry.get(forced))
    nameless = [index for index, name in enumerate(bands.names, start=1) if name is None]
    if nameless:
        raise UnusableError(
            "ambiguous_bands",
            f"it has {bands}, and what band {nameless[0]} holds is not known. Declare the scene's bands in a "
            "declarations file, or name its modality if the bands are in the modality's order",
        )
    fits, misses = [], []
    for spec in registry.known():
        try:
            fits.append(_fit(bands, spec))
        except UnusableError as miss:
            misses.append(miss)
    if not fits:
        raise _nearest(bands, misses)
    used = [len(_present(match)) for match in fits]
    if used.count(max(used)) > 1:
        rivals = " or ".join(match.modality for match, num in zip(fits, used, strict=True) if num == max(used))
        raise UnusableError("ambiguous_bands", f"it has {bands}, which may be {rivals}. Name the scene's modality")
    return fits[used.index(max(used))]


def _present(match: Match) -> list[int]:
    return [index for index in match.band_indices if index is not None]


def _nearest(bands: RasterBands, misses: Sequence[UnusableError]) -> UnusableError:
    """The refusal of a file that no modality fits: the most telling of the reasons."""
    for code in ("ambiguous_bands", "wrong_dtype"):
        for miss in misses:
            if miss.code == code:
                return miss
    known = "; ".join(f"{spec.key}: {', '.join(spec.bands)}" for spec in registry.known())
    return UnusableError(
        "wrong_bands",
        f"it has {bands}, and no modality can be made of them ({known}). If it is a scene after all, declare its bands",
    )


def _fit_forced(bands: RasterBands, spec: ModalitySpec) -> Match:
    """The bands of a modality that somebody has named: by name, or in its order if none has a name and all are there.

    Raises:
        UnusableError: The bands are of another number or type, or some are named and others not.
    """
    if all(bands.names):
        return _fit(bands, spec)
    if any(bands.names) or len(bands.names) != len(spec.bands):
        raise UnusableError(
            "wrong_bands",
            f"it has {bands}, but {spec.key} has {len(spec.bands)} ({', '.join(spec.bands)}). Name another modality, "
            "or declare which band is which",
        )
    check_dtype(bands, spec)
    return Match(spec.key, tuple(range(1, len(spec.bands) + 1)))


def _fit(bands: RasterBands, spec: ModalitySpec) -> Match:
    """Finds each band of ``spec`` by name.

    Raises:
        UnusableError: A band is missing, found twice, or of a type that the modality does not hold.
    """
    convention = _convention(bands)
    found = {name: _named(bands, convention, name) for name in spec.bands}
    twice = next((name for name, indices in found.items() if len(indices) > 1), None)
    missing = [name for name, indices in found.items() if not indices]
    if len(missing) == len(spec.bands) or (missing and not spec.optional_bands):
        raise UnusableError(
            "wrong_bands",
            f"it has {bands}, but {spec.key} has {len(spec.bands)} ({', '.join(spec.bands)}): {', '.join(missing)} "
            "is not among them by name. Name another modality, or declare which band is which",
        )
    check_dtype(bands, spec)
    if twice is not None:
        raise UnusableError(
            "ambiguous_bands",
            f"it has {bands}, and bands {' and '.join(map(str, found[twice]))} could each be {twice} of {spec.key}. "
            "Declare which one is meant",
        )
    indices = tuple(found[name][0] if found[name] else None for name in spec.bands)
    return Match(spec.key, indices, convention.sensor if convention else UNKNOWN_SENSOR)


def check_dtype(bands: RasterBands, spec: ModalitySpec) -> None:
    """Checks that the modality holds numbers of the file's type.

    Raises:
        UnusableError: It does not.
    """
    if bands.dtype not in spec.dtypes:
        raise UnusableError(
            "wrong_dtype",
            f"it has {bands}, but {spec.key} holds {' or '.join(spec.dtypes)}. Convert it, or name another modality",
        )


def _convention(bands: RasterBands) -> Convention | None:
    """The instrument whose numbering the names follow."""
    joined = " ".join(name or "-" for name in bands.names).upper()
    return next((c for c in CONVENTIONS if bands.dtype in c.dtypes and c.names.fullmatch(joined)), None)


def _named(bands: RasterBands, convention: Convention | None, wanted: str) -> list[int]:
    """Raster bands (from 1) that are called ``wanted``, by whatever name."""
    alias = ALIASES.get(wanted)
    numbered = convention.bands if convention else {}
    return [
        index
        for index, name in enumerate(bands.names, start=1)
        if name is not None
        and (
            name.casefold() == wanted.casefold()
            or numbered.get(name.upper()) == wanted
            or (alias is not None and alias.fullmatch(name) is not None)
        )
    ]
