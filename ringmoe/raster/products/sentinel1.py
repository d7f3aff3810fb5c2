"""Sentinel-1 Level-1 in the SAFE format: complex images (SLC) and detected ones (GRD).

An SLC product gives one complex scene for each swath, with the polarisations that it has; the others are declared
absent. A burst image is taken as it lies in the file, burst below burst. A GRD product gives one amplitude scene for
each polarisation. Calibrated pixels are ``DN / A`` (see ``ringmoe.raster.calibration``): their square is sigma nought.
Thermal noise is not subtracted. Places come from the control points of the measurement files, or where these have none
from the geolocation grid of the annotation, which holds the same points.
"""

import re
from dataclasses import dataclass

from ringmoe.batch import Radiometry
from ringmoe.raster.markup import Document, inside
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.scene import BandSource, ControlPoint, ProductInfo, UnusableError

ENTRY = re.compile(r"manifest\.safe")

CALIBRATED = Radiometry(quantity="amplitude whose square is sigma nought")
UNCALIBRATED = Radiometry(quantity="uncalibrated amplitude")

_MEASUREMENT = re.compile(
    r"measurement/(?P<stem>s1\w-\w+-(?P<type>slc|grd)-(?P<polarisation>hh|hv|vh|vv)-[\w-]+)\.tiff"
)
_LOCATIONS = "dataObjectSection/dataObject/byteStream/fileLocation"


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One measurement file and what its annotation says."""

    file: str
    kind: str
    polarisation: str
    swath: str
    mode: str
    started: str
    size: tuple[int, int]
    table: str | None
    control: tuple[ControlPoint, ...]

    @property
    def band(self) -> BandSource:
        """The file as a band."""
        return BandSource(file=self.file, index=1, table=self.table)


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """A scene for each swath (SLC) or polarisation (GRD).

    Raises:
        UnusableError: The metadata is damaged, a part is missing, or it is no Level-1 image of Sentinel-1.
    """
    document = Document.load(found.entry)
    files = [inside(found.root, element.get("href", ""), found.entry) for element in document.all(_LOCATIONS)]
    images = [_image(found, match, calibrate) for file in files if (match := _MEASUREMENT.fullmatch(file))]
    if not images:
        raise UnusableError(
            "other_product",
            f"{found.entry.name} lists no measurement/s1*-slc-*.tiff or s1*-grd-*.tiff; read are Sentinel-1 SLC and "
            "GRD, and Sentinel-2 with its MTD_MSIL1C.xml or MTD_MSIL2A.xml beside",
        )
    drafts = []
    for swath in dict.fromkeys(image.swath for image in images if image.kind == "SLC"):
        of_swath = [image for image in images if image.swath == swath]
        bands = {image.polarisation: image.band for image in of_swath}
        if len(bands) < len(of_swath):
            raise UnusableError(
                "other_product",
                f"{found.entry.name} lists {len(of_swath)} images of {len(bands)} polarisations for swath {swath}; one "
                "image of each polarisation is read (wave mode has many)",
            )
        drafts.append(_draft(found, of_swath[0], "sar_l1", bands, swath.lower(), calibrate))
    for image in images:
        if image.kind == "GRD":
            drafts.append(_draft(found, image, "sar_l2", {"A": image.band}, image.polarisation.lower(), calibrate))
    return drafts


def _draft(
    found: FoundProduct, image: _Image, modality: str, bands: dict[str, BandSource], part: str, calibrate: bool
) -> Draft:
    is_complex = image.kind == "SLC"
    return Draft(
        part=part,
        modality=modality,
        bands=bands,
        units="complex" if is_complex else "amplitude" if calibrate else "dn",
        sensor="Sentinel-1 C-SAR" if is_complex else f"Sentinel-1 C-SAR {image.polarisation}",
        acquired=image.started,
        nodata=None if is_complex else 0.0,
        radiometry=CALIBRATED if calibrate else UNCALIBRATED,
        size=image.size,
        control=image.control,
        info=ProductInfo(
            kind=f"Sentinel-1 {image.mode} {image.kind}",
            identifier=found.name.rpartition("/")[2].removesuffix(".SAFE"),
            level=f"Level-1 {image.kind}",
            place=image.swath,
        ),
    )


def _image(found: FoundProduct, match: re.Match[str], calibrate: bool) -> _Image:
    """Reads the annotation of a measurement file.

    Raises:
        UnusableError: The annotation or the calibration table is missing or damaged.
    """
    annotation = f"annotation/{match['stem']}.xml"
    document = Document.load(found.root / inside(found.root, annotation, found.entry))
    table = inside(found.root, f"annotation/calibration/calibration-{match['stem']}.xml", found.entry)
    if calibrate and not (found.root / table).is_file():
        raise UnusableError(
            "missing_part",
            f"{table} is missing: without it {match[0]} cannot be calibrated. Fetch the product again, or take its "
            "numbers as they are (--no-calibrate)",
        )
    about = "imageAnnotation/imageInformation"
    rows, cols = (int(document.numbers(f"{about}/{name}")[0]) for name in ("numberOfLines", "numberOfSamples"))
    polarisation = document.text("adsHeader/polarisation")
    if polarisation != match["polarisation"].upper():
        raise UnusableError(
            "conflict", f"{annotation} says polarisation {polarisation}, but the name of {match[0]} says otherwise"
        )
    return _Image(
        file=match[0],
        kind=document.text("adsHeader/productType"),
        polarisation=polarisation,
        swath=document.text("adsHeader/swath"),
        mode=document.text("adsHeader/mode"),
        started=document.text("adsHeader/startTime"),
        size=(rows, cols),
        table=table if calibrate else None,
        control=_control(document),
    )


def _control(document: Document) -> tuple[ControlPoint, ...]:
    """The geolocation grid of an annotation.

    Raises:
        UnusableError: It is missing or damaged.
    """
    points = document.all("geolocationGrid/geolocationGridPointList/geolocationGridPoint")
    names = ("line", "pixel", "latitude", "longitude")
    found = [[document.numbers(name, point)[0] for name in names] for point in points]
    return tuple((line, pixel, longitude, latitude) for line, pixel, latitude, longitude in found)
