"""Landsat 8 and 9 Collection 2, Level 1 and 2: blue, green, red and near infrared as one multispectral scene.

Pixels stay the digital numbers of the product; ``reflectance = MULT x DN + ADD`` is recorded (Landsat 8-9 Collection 2
data format control books, LSDS-1822 and LSDS-1328). Of Level 1 this is the reflectance at the top of the atmosphere
before the division by the sine of the sun's elevation. Zero is fill.
"""

import re

from ringmoe.batch import Radiometry
from ringmoe.raster.markup import Groups, entry, groups, inside, number
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.scene import BandSource, Mask, ProductInfo, UnusableError

ENTRY = re.compile(r"(?P<stem>L[COTEM]\d\d_L\w{3}_\d{6}_\d{8}_\d{8}_\d\d_\w\w)_MTL\.(json|xml|txt)")

_BANDS = {"B": "2", "G": "3", "R": "4", "NIR": "5"}
_SPACECRAFT = {"LANDSAT_8": "Landsat-8", "LANDSAT_9": "Landsat-9"}
_RADIOMETRY = {
    "L1": (
        "top-of-atmosphere reflectance x sine of the sun's elevation",
        "LEVEL1_RADIOMETRIC_RESCALING",
    ),
    "L2": ("surface reflectance", "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"),
}
"""Of each level: the quantity, and the group of its factors. Level 2 products repeat the group of Level 1."""


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """The one scene of the product; nothing is calibrated.

    Raises:
        UnusableError: The metadata is damaged, or the product is of another spacecraft or collection.
    """
    told = groups(found.entry)

    def value(group: str, name: str) -> str:
        return entry(told, found.entry, group, name)

    spacecraft, collection = value("IMAGE_ATTRIBUTES", "SPACECRAFT_ID"), value("PRODUCT_CONTENTS", "COLLECTION_NUMBER")
    level = value("PRODUCT_CONTENTS", "PROCESSING_LEVEL")
    if spacecraft not in _SPACECRAFT or collection.lstrip("0") != "2" or level[:2] not in _RADIOMETRY:
        raise UnusableError(
            "other_product",
            f"{found.entry.name} is of {spacecraft}, collection {collection}, level {level}; read are Landsat 8 and 9 "
            "with OLI, collection 2, levels 1 and 2",
        )
    files = {
        name: inside(found.root, value("PRODUCT_CONTENTS", f"FILE_NAME_BAND_{band}"), found.entry)
        for name, band in _BANDS.items()
    }
    return [
        Draft(
            modality="ms",
            bands={name: BandSource(file=file, index=1) for name, file in files.items()},
            units="dn",
            sensor="Landsat-8/9 OLI",
            acquired=f"{value('IMAGE_ATTRIBUTES', 'DATE_ACQUIRED')}T{value('IMAGE_ATTRIBUTES', 'SCENE_CENTER_TIME')}",
            nodata=0.0,
            radiometry=_radiometry(told, found, level[:2]),
            info=ProductInfo(
                kind=f"{_SPACECRAFT[spacecraft]} {level}",
                identifier=value("PRODUCT_CONTENTS", "LANDSAT_PRODUCT_ID"),
                level=level,
                place=f"path {value('IMAGE_ATTRIBUTES', 'WRS_PATH')}, row {value('IMAGE_ATTRIBUTES', 'WRS_ROW')}",
                mask=_mask(told, found, "QA_PIXEL", "FILE_NAME_QUALITY_L1_PIXEL"),
                saturation=_mask(told, found, "QA_RADSAT", "FILE_NAME_QUALITY_L1_RADIOMETRIC_SATURATION"),
            ),
        )
    ]


def _mask(told: Groups, found: FoundProduct, kind: str, key: str) -> Mask | None:
    """A quality band, where the product has it."""
    name = told.get("PRODUCT_CONTENTS", {}).get(key)
    return Mask(kind=kind, file=inside(found.root, name, found.entry)) if name else None


def _radiometry(told: Groups, found: FoundProduct, level: str) -> Radiometry:
    """The rule from digital numbers to reflectance.

    Raises:
        UnusableError: A factor is missing, or the four bands have different ones.
    """
    quantity, group = _RADIOMETRY[level]
    factors = {
        tuple(
            number(entry(told, found.entry, group, name), found.entry, name)
            for name in (f"REFLECTANCE_MULT_BAND_{band}", f"REFLECTANCE_ADD_BAND_{band}")
        )
        for band in _BANDS.values()
    }
    if len(factors) > 1:
        raise UnusableError(
            "conflict", f"{found.entry.name}: its bands have different factors {sorted(factors)}; expected one for all"
        )
    ((scale, offset),) = factors
    return Radiometry(quantity=quantity, scale=scale, offset=offset)
