"""Sentinel-2 L1C and L2A in the SAFE format: the four 10 m bands of each granule as one multispectral scene.

Pixels stay the digital numbers of the product; ``reflectance = (DN + offset) / quantification value`` is recorded. The
offset came with processing baseline 04.00 (January 2022) and is -1000; products before it have none. Zero is no data.
"""

import re

from ringmoe.batch import Radiometry
from ringmoe.raster.markup import Document, inside
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.scene import BandSource, Mask, ProductInfo, UnusableError

ENTRY = re.compile(r"MTD_MSIL(1C|2A)\.xml")

_BANDS = {"B": "B02", "G": "B03", "R": "B04", "NIR": "B08"}
_BAND_IDS = ("1", "2", "3", "7")  # numbers of these bands in lists of the metadata, where B01 is 0 and B8A 8
_IMAGE = re.compile(r"(?P<place>.*)/IMG_DATA/(R10m/)?(?P<tile>T\w{5})_\w+_(?P<band>B0[2348])(_10m)?")
_CLASSES = re.compile(r".*/IMG_DATA/(R20m/)?\w+_SCL_20m")
_OFFSETS_SINCE = 4.0  # processing baseline

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
    """One scene for each granule; nothing is calibrated.

    Raises:
        UnusableError: The metadata is damaged, or does not list all four bands.
    """
    document = Document.load(found.entry)
    match = ENTRY.fullmatch(found.entry.name)
    assert match is not None, "products are found by this name"
    level = match[1]
    radiometry = _radiometry(document, level)
    granules: dict[str, dict[str, str]] = {}
    masks: dict[str, Mask] = {}
    for element in document.all(_IMAGES):
        name = (element.text or "").strip()
        if image := _IMAGE.fullmatch(name):
            granules.setdefault(image["place"], {})[image["band"]] = inside(found.root, f"{name}.jp2", found.entry)
        elif _CLASSES.fullmatch(name):
            file = inside(found.root, f"{name}.jp2", found.entry)
            masks[name.partition("/IMG_DATA/")[0]] = Mask(kind="SCL", file=file)
    if not granules:
        raise UnusableError("missing_part", f"{found.entry.name} lists no 10 m band (IMAGE_FILE .../T....._B02)")
    return [
        Draft(
            part=place.rpartition("/")[2] if len(granules) > 1 else "",
            modality="ms",
            bands=_bands(found, place, files),
            units="dn",
            sensor="Sentinel-2 MSI",
            acquired=document.text(f"{_ABOUT}/PRODUCT_START_TIME"),
            nodata=0.0,
            radiometry=radiometry,
            info=ProductInfo(
                kind=f"Sentinel-2 L{level}",
                identifier=document.text(f"{_ABOUT}/PRODUCT_URI").removesuffix(".SAFE"),
                level=f"{document.text(f'{_ABOUT}/PROCESSING_LEVEL')}, baseline {_baseline(document)}",
                place=_tile(files),
                mask=masks.get(place),
            ),
        )
        for place, files in granules.items()
    ]


def _bands(found: FoundProduct, place: str, files: dict[str, str]) -> dict[str, BandSource]:
    missing = [number for number in _BANDS.values() if number not in files]
    if missing:
        raise UnusableError(
            "missing_part",
            f"{found.entry.name} lists no 10 m file of {', '.join(missing)} for {place}; "
            f"{', '.join(_BANDS.values())} make the scene",
        )
    return {name: BandSource(file=files[number], index=1) for name, number in _BANDS.items()}


def _tile(files: dict[str, str]) -> str:
    """The tile of the grid, from the name of a file."""
    match = _IMAGE.fullmatch(next(iter(files.values())).removesuffix(".jp2"))
    assert match is not None, "files are listed by this name"
    return match["tile"]


def _baseline(document: Document) -> str:
    return document.text(f"{_ABOUT}/PROCESSING_BASELINE")


def _radiometry(document: Document, level: str) -> Radiometry:
    """The rule from digital numbers to reflectance.

    Raises:
        UnusableError: An entry is missing, or the four bands have different offsets.
    """
    quantity, quantification, offset = _RADIOMETRY[level]
    (divisor,) = document.numbers(f"{_IMAGE_ABOUT}/{quantification}")
    (baseline,) = document.numbers(f"{_ABOUT}/PROCESSING_BASELINE")
    if divisor <= 0:
        raise UnusableError("unreadable", f"{document.path.name}: {quantification} is {divisor:g}; expected above zero")
    if baseline < _OFFSETS_SINCE and not document.has(f"{_IMAGE_ABOUT}/{offset}"):
        return Radiometry(quantity=quantity, scale=1 / divisor)
    offsets = {document.numbers(f"{_IMAGE_ABOUT}/{offset}[@band_id='{number}']")[0] for number in _BAND_IDS}
    if len(offsets) > 1:
        raise UnusableError(
            "conflict",
            f"{document.path.name}: its bands have different offsets ({', '.join(map(str, sorted(offsets)))}); one "
            "rule for all bands of a scene is expected",
        )
    return Radiometry(quantity=quantity, scale=1 / divisor, offset=offsets.pop() / divisor)
