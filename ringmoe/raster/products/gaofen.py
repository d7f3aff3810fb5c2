"""GF-1 and GF-2 L1A: the multispectral image of PMS or WFV cameras, blue, green, red and near infrared in one file.

Pixels stay digital numbers: their maker publishes the factors to radiance anew each year, apart from the products. Zero
is no data. The panchromatic image that comes with PMS is not used. Times are as the metadata writes them, without zone.
Places come from the rational polynomial coefficients beside the image, else from the corners in the metadata.
"""

import re

from ringmoe.batch import Radiometry
from ringmoe.raster.markup import Document
from ringmoe.raster.products.draft import Draft, FoundProduct, corner_control
from ringmoe.raster.scene import BandSource, ControlPoint, ProductInfo, UnusableError

ENTRY = re.compile(
    r"(?P<stem>(?P<satellite>GF(1[BCD]?|2))_(?P<camera>PMS\d?|WFV\d?)_[EW][\d.]+_[NS][\d.]+_\d{8}_L1A\d+)(-MSS\d?)?\.xml"
)

_BANDS = {"B": 1, "G": 2, "R": 3, "NIR": 4}
_SUFFIXES = (".tiff", ".tif")


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """The one scene of the product; nothing is calibrated.

    Raises:
        UnusableError: The metadata is damaged, or its image is missing or has other bands.
    """
    document = Document.load(found.entry)
    match = ENTRY.fullmatch(found.entry.name)
    assert match is not None, "products are found by this name"
    told = document.text("Bands").replace(" ", "")
    if told != "1,2,3,4":
        raise UnusableError("other_product", f"{found.entry.name} says bands {told}; read are 1,2,3,4")
    (height,), (width,) = document.numbers("HeightInPixels"), document.numbers("WidthInPixels")
    (gsd,) = document.numbers("ImageGSD")
    file = _image(found)
    satellite = f"GF-{match['satellite'].removeprefix('GF')}"
    return [
        Draft(
            modality="ms",
            bands={name: BandSource(file=file, index=index) for name, index in _BANDS.items()},
            units="dn",
            sensor=f"{satellite} {match['camera'][:3]}",
            acquired=document.text("CenterTime").replace(" ", "T"),
            nodata=0.0,
            radiometry=Radiometry(quantity="digital number"),
            size=(int(height), int(width)),
            gsd=gsd,
            control=_control(document, (int(height), int(width))),
            info=ProductInfo(kind=f"{satellite} {match['camera']} L1A", identifier=found.stem, level="L1A"),
        )
    ]


def _control(document: Document, size: tuple[int, int]) -> tuple[ControlPoint, ...]:
    """The corners of the image, which stand in where there are no rational polynomial coefficients beside it."""
    corners = ("TopLeft", "TopRight", "BottomRight", "BottomLeft")
    if not all(document.has(f"{corner}{axis}") for corner in corners for axis in ("Longitude", "Latitude")):
        return ()
    return corner_control(
        size, [(document.numbers(f"{name}Longitude")[0], document.numbers(f"{name}Latitude")[0]) for name in corners]
    )


def _image(found: FoundProduct) -> str:
    """The image that the metadata file lies beside.

    Raises:
        UnusableError: There is none.
    """
    names = [found.entry.with_suffix(suffix).name for suffix in _SUFFIXES]
    for name in names:
        if (found.root / name).is_file():
            return name
    raise UnusableError(
        "missing_part", f"{names[0]} is missing beside {found.entry.name}. Fetch the product again, whole"
    )
