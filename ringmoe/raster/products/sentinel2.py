"""Sentinel-2 L1C and L2A in the SAFE format: the four 10 m bands of each granule as one multispectral scene.

Further bands are a matter of the registry: each modality whose bands are all called like those of Sentinel-2 ("B05",
"B8A", ...) gives a scene of its own, on the grid of its finest band; pixels of coarser bands are repeated.

Pixels stay the digital numbers of the product; ``reflectance = (DN + offset) / quantification value`` is recorded. The
offset came with processing baseline 04.00 (January 2022) and is -1000; products before it have none. Zero is no data.

Clouds: L2A has a scene classification (``SCL``). L1C has a raster of clouds (``MSK_CLASSI``) since the same baseline;
the polygons that products before it have (``MSK_CLOUDS``, GML) are not read.
"""

import re
from dataclasses import dataclass, field

from ringmoe import modality as registry
from ringmoe.batch import Radiometry
from ringmoe.raster.markup import Document, inside
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.scene import BandSource, Mask, ProductInfo, UnusableError

ENTRY = re.compile(r"MTD_MSIL(1C|2A)\.xml")

_BANDS = {"B": "B02", "G": "B03", "R": "B04", "NIR": "B08"}
_METRES = {
    **{"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20},
    **{"B09": 60, "B10": 60, "B11": 20, "B12": 20},
}
"""Sampling distance of each band, in the order of their numbers (from 0) in lists of the metadata."""
_IMAGE = re.compile(
    r"(?P<place>.*)/IMG_DATA/(R\d0m/)?(?P<tile>T\w{5})_\w+?_(?P<band>B(0[1-9]|8A|1[0-2]))(_(?P<metres>\d0)m)?"
)
_CLASSES = re.compile(r".*/IMG_DATA/(R20m/)?\w+_SCL_20m")
_MASK_METRES = {"SCL": 20, "MSK_CLASSI": 60}
_OFFSETS_SINCE = 4.0  # processing baseline

_TILE_MASKS = "Quality_Indicators_Info/Pixel_Level_QI/MASK_FILENAME"
_IMAGES = "General_Info/Product_Info/Product_Organisation/Granule_List/Granule/IMAGE_FILE"
_ABOUT = "General_Info/Product_Info"
_IMAGE_ABOUT = "General_Info/Product_Image_Characteristics"
_RADIOMETRY = {
    "1C": ("top-of-atmosphere reflectance", "QUANTIFICATION_VALUE", "Radiometric_Offset_List/RADIO_ADD_OFFSET"),
    "2A": (
        "surface reflectance",
        "QUANTIFICATION_VALUES_LIST/BOA_QUANTIFICATION_VALUE",
        "BOA_ADD_OFFSET_VALUES_LIST/BOA_ADD_OFFSET",
    ),
}
"""Of each level: the quantity, and where its quantification value and offsets stand."""


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """A scene for each granule and modality; nothing is calibrated.

    Raises:
        UnusableError: The metadata is damaged, or does not list all bands.
    """
    document = Document.load(found.entry)
    match = ENTRY.fullmatch(found.entry.name)
    assert match is not None, "products are found by this name"
    granules: dict[str, _Granule] = {}
    for element in document.all(_IMAGES):
        name = (element.text or "").strip()
        place = name.partition("/IMG_DATA/")[0]
        if image := _IMAGE.fullmatch(name):
            files = granules.setdefault(place, _Granule(place)).files
            if image["metres"] in (None, str(_METRES[image["band"]])):  # else a copy of a finer band
                files[image["band"]] = inside(found.root, f"{name}.jp2", found.entry)
        elif _CLASSES.fullmatch(name):
            file = inside(found.root, f"{name}.jp2", found.entry)
            granules.setdefault(place, _Granule(place)).mask = Mask(kind="SCL", file=file)
    whole = [granule for granule in granules.values() if granule.files]
    for granule in whole:
        granule.mask = granule.mask or _classified_clouds(found, granule.place)
    if not whole:
        raise UnusableError("missing_part", f"{found.entry.name} lists no band (IMAGE_FILE .../T....._B02)")
    return [
        _draft(found, document, match[1], modality, granule, alone=len(whole) == 1)
        for granule in whole
        for modality in _modalities()
    ]


@dataclass
class _Granule:
    """What the metadata lists of one granule.

    Attributes:
        place: Its folder.
        files: File of each band.
        mask: Its scene classification, or its raster of clouds.
    """

    place: str
    files: dict[str, str] = field(default_factory=dict)
    mask: Mask | None = None


def _classified_clouds(found: FoundProduct, place: str) -> Mask | None:
    """The raster of clouds that the metadata of a granule lists; None where it lists none, or is not there.

    Raises:
        UnusableError: The metadata is damaged.
    """
    metadata = found.root / place / "MTD_TL.xml"
    if not metadata.is_file():
        return None
    document = Document.load(metadata)
    for element in document.all(_TILE_MASKS) if document.has(_TILE_MASKS) else ():
        name = (element.text or "").strip().rpartition("/")[2]
        if element.get("type") == "MSK_CLASSI" and name.endswith(".jp2"):
            return Mask(kind="MSK_CLASSI", file=inside(found.root, f"{place}/QI_DATA/{name}", metadata))
    return None


def _modalities() -> dict[str, dict[str, str]]:
    """Of each modality that a granule holds, the product's name of every band.

    They are ``ms``, and each that was registered with bands of Sentinel-2 by name and holds digital numbers.
    """
    named = [spec for spec in registry.known() if set(spec.bands) <= {*_METRES} and "dn" in spec.units]
    return {"ms": _BANDS} | {spec.key: {band: band for band in spec.bands} for spec in named}


def _draft(
    found: FoundProduct, document: Document, level: str, modality: str, granule: _Granule, *, alone: bool
) -> Draft:
    """One modality of one granule; the pixels of its coarser bands are repeated.

    Raises:
        UnusableError: A band or an entry of the metadata is missing, or the bands have different offsets.
    """
    files = granule.files
    names = _modalities()[modality]
    missing = [number for number in names.values() if number not in files]
    if missing and (len(missing) == len(names) or not registry.get(modality).optional_bands):
        raise UnusableError(
            "missing_part",
            f"{found.entry.name} lists no {', no '.join(f'{_METRES[band]} m file of {band}' for band in missing)} for "
            f"{granule.place}; {', '.join(names.values())} make the scene of {modality}",
        )
    present = {name: number for name, number in names.items() if number not in missing}
    finest = min(_METRES[number] for number in present.values())
    part = ("" if alone else granule.place.rpartition("/")[2], "" if modality == "ms" else modality)
    return Draft(
        part="/".join(filter(None, part)),
        modality=modality,
        bands={
            name: BandSource(file=files[number], index=1, repeat=_METRES[number] // finest)
            for name, number in present.items()
        },
        units="dn",
        sensor="Sentinel-2 MSI",
        acquired=document.text(f"{_ABOUT}/PRODUCT_START_TIME"),
        nodata=0.0,
        radiometry=_radiometry(document, level, list(present.values())),
        info=ProductInfo(
            kind=f"Sentinel-2 L{level}",
            identifier=document.text(f"{_ABOUT}/PRODUCT_URI").removesuffix(".SAFE"),
            level=f"{document.text(f'{_ABOUT}/PROCESSING_LEVEL')}, baseline {_baseline(document)}",
            place=_tile(files),
            mask=granule.mask if granule.mask and finest <= _MASK_METRES[granule.mask.kind] else None,
            saturated=_saturated(document),
        ),
    )


def _tile(files: dict[str, str]) -> str:
    """The tile of the grid, from the name of a file."""
    match = _IMAGE.fullmatch(next(iter(files.values())).removesuffix(".jp2"))
    assert match is not None, "files are listed by this name"
    return match["tile"]


def _baseline(document: Document) -> str:
    return document.text(f"{_ABOUT}/PROCESSING_BASELINE")


def _saturated(document: Document) -> float | None:
    """The digital number of saturated pixels, where the metadata gives it."""
    values = f"{_IMAGE_ABOUT}/Special_Values"
    for element in document.all(values) if document.has(values) else ():
        if (element.findtext("SPECIAL_VALUE_TEXT") or "").strip() == "SATURATED":
            return document.numbers("SPECIAL_VALUE_INDEX", element)[0]
    return None


def _radiometry(document: Document, level: str, bands: list[str]) -> Radiometry:
    """The rule from digital numbers to reflectance.

    Raises:
        UnusableError: An entry is missing, or the bands have different offsets.
    """
    quantity, quantification, offset = _RADIOMETRY[level]
    (divisor,) = document.numbers(f"{_IMAGE_ABOUT}/{quantification}")
    (baseline,) = document.numbers(f"{_ABOUT}/PROCESSING_BASELINE")
    if divisor <= 0:
        raise UnusableError("unreadable", f"{document.path.name}: {quantification} is {divisor:g}; expected above zero")
    if baseline < _OFFSETS_SINCE and not document.has(f"{_IMAGE_ABOUT}/{offset}"):
        return Radiometry(quantity=quantity, scale=1 / divisor)
    ids = [list(_METRES).index(band) for band in bands]
    offsets = {document.numbers(f"{_IMAGE_ABOUT}/{offset}[@band_id='{number}']")[0] for number in ids}
    if len(offsets) > 1:
        raise UnusableError(
            "conflict",
            f"{document.path.name}: its bands have different offsets ({', '.join(map(str, sorted(offsets)))}); one "
            "rule for all bands of a scene is expected",
        )
    return Radiometry(quantity=quantity, scale=1 / divisor, offset=offsets.pop() / divisor)
