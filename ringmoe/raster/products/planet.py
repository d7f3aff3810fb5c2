"""PlanetScope analytic products of four bands: blue, green, red and near infrared in one file.

Of a product that holds both, the surface reflectance is taken, not the radiance: the same ground counts once. Pixels
stay digital numbers, and the rule to the quantity is recorded: 10,000 times the surface reflectance, or the radiance by
the factor in the metadata. Zero is no data. Products of eight bands are not read.
"""

import re

from ringmoe.batch import Radiometry
from ringmoe.raster.markup import Document
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.scene import BandSource, Mask, ProductInfo, UnusableError

ENTRY = re.compile(
    r"(?P<stem>\d{8}_\d{6}(_\d\d)?_[0-9a-f]{4}_(?P<level>1B|3A|3B)_)AnalyticMS_metadata(?P<clip>_clip)?\.xml"
)

_BANDS = {"B": 1, "G": 2, "R": 3, "NIR": 4}
_SURFACE = Radiometry(quantity="surface reflectance", scale=1e-4)


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """The one scene of the product; nothing is calibrated.

    Raises:
        UnusableError: The metadata is damaged, or there is no image.
    """
    document = Document.load(found.entry)
    match = ENTRY.fullmatch(found.entry.name)
    assert match is not None, "products are found by this name"
    clip = match["clip"] or ""
    names = set(found.beside())
    surface = [f"{found.stem}AnalyticMS_SR{kind}{clip}.tif" for kind in ("_harmonized", "")]
    radiance = f"{found.stem}AnalyticMS{clip}.tif"
    file = next((name for name in (*surface, radiance) if name in names), None)
    if file is None:
        raise UnusableError(
            "missing_part",
            f"there is neither {surface[1]} nor {radiance} beside {found.entry.name}. Fetch the product again, whole",
        )
    mask = f"{found.stem}udm2{clip}.tif"
    return [
        Draft(
            modality="ms",
            bands={name: BandSource(file=file, index=index) for name, index in _BANDS.items()},
            units="dn",
            sensor="PlanetScope",
            acquired=document.text(".//acquisitionDateTime"),
            nodata=0.0,
            radiometry=_radiance(document) if file == radiance else _SURFACE,
            info=ProductInfo(
                kind=f"PlanetScope {'AnalyticMS' if file == radiance else 'AnalyticMS_SR'}",
                identifier=found.stem.rstrip("_"),
                level=match["level"],
                mask=Mask(kind="UDM2", file=mask) if mask in names else None,
            ),
        )
    ]


def _radiance(document: Document) -> Radiometry:
    """The rule from digital numbers to radiance.

    Raises:
        UnusableError: The factor of a band is missing, or the bands have different ones.
    """
    bands = document.all(".//bandSpecificMetadata")
    factors = {document.numbers("radiometricScaleFactor", band)[0] for band in bands}
    if len(bands) != len(_BANDS) or len(factors) > 1:
        raise UnusableError(
            "conflict",
            f"{document.path.name} describes {len(bands)} bands with radiometricScaleFactor {sorted(factors)}; "
            f"expected {len(_BANDS)} bands with one factor",
        )
    return Radiometry(quantity="top-of-atmosphere radiance, W / (m2 sr um)", scale=factors.pop())
