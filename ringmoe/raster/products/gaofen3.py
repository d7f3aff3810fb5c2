"""GF-3 L1A: single-look complex images, one file of I and Q (int16) for each polarisation.

``sigma0 [dB] = 10 log10((I^2 + Q^2) (QualifyValue / 32767)^2) - CalibrationConst``, with both constants of each
polarisation from ``*.meta.xml``. The maximum that 32767 stands for differs between polarisations, so without them the
polarisations of a pixel are not comparable. Calibrated pixels are complex amplitudes whose square is sigma nought.
Places come from the corners in the metadata.
"""

import re

from ringmoe.raster.markup import Document
from ringmoe.raster.products.draft import Draft, FoundProduct, corner_control
from ringmoe.raster.products.sentinel1 import CALIBRATED, UNCALIBRATED
from ringmoe.raster.scene import BandSource, ControlPoint, ProductInfo, UnusableError

ENTRY = re.compile(r"(?P<stem>GF3\w?_\w+_[EW][\d.]+_[NS][\d.]+_\d{8}_L1A_)\w+_(?P<number>L\d+)\.meta\.xml")

_POLARISATIONS = ("HH", "HV", "VH", "VV")
_FULL_SCALE = 32767


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """The one scene of the product.

    Raises:
        UnusableError: The metadata is damaged, or no polarisation has a file.
    """
    document = Document.load(found.entry)
    entry = ENTRY.fullmatch(found.entry.name)
    assert entry is not None, "products are found by this name"
    image = re.compile(re.escape(found.stem) + rf"(HH|HV|VH|VV)_{entry['number']}\.tiff?")
    matches = [match for name in found.beside() if (match := image.fullmatch(name))]
    bands = {match[1]: _band(document, match[0], match[1], calibrate) for match in matches}
    told = [name for name in _POLARISATIONS if _constant(document, "imageinfo/QualifyValue", name) is not None]
    missing = [name for name in told if name not in bands]
    if missing or not bands:
        raise UnusableError(
            "missing_part",
            f"{found.entry.name} describes {', '.join(told) or 'no polarisation'}, but there is no file "
            f"{found.stem}{'/'.join(missing) or 'HH/HV/VH/VV'}_{entry['number']}.tiff. Fetch the product again, whole",
        )
    return [
        Draft(
            modality="sar_l1",
            bands=bands,
            units="complex",
            sensor="GF-3 C-SAR",
            acquired=document.text("imageinfo/imagingTime/start").replace(" ", "T"),
            radiometry=CALIBRATED if calibrate else UNCALIBRATED,
            control=_control(document),
            info=ProductInfo(
                kind=f"GF-3 {document.text('sensor/imagingMode')} L1A",
                identifier=found.entry.name.removesuffix(".meta.xml"),
                level="L1A",
            ),
        )
    ]


def _control(document: Document) -> tuple[ControlPoint, ...]:
    """The corners of the image, which the metadata gives in longitude and latitude; none where it does not."""
    corners = [f"imageinfo/corner/{name}" for name in ("topLeft", "topRight", "bottomRight", "bottomLeft")]
    if not all(document.has(f"{corner}/{axis}") for corner in corners for axis in ("longitude", "latitude")):
        return ()
    (height,), (width,) = document.numbers("imageinfo/height"), document.numbers("imageinfo/width")
    places = [
        (document.numbers(f"{corner}/longitude")[0], document.numbers(f"{corner}/latitude")[0]) for corner in corners
    ]
    return corner_control((int(height), int(width)), places)


def _constant(document: Document, group: str, polarisation: str) -> float | None:
    """A constant of one polarisation; None where the product does not have it ("NULL")."""
    text = document.text(f"{group}/{polarisation}") if document.has(f"{group}/{polarisation}") else "NULL"
    return None if text.upper() == "NULL" else document.numbers(f"{group}/{polarisation}")[0]


def _band(document: Document, file: str, polarisation: str, calibrate: bool) -> BandSource:
    """The file of a polarisation with its gain.

    Raises:
        UnusableError: A constant is missing.
    """
    qualify = _constant(document, "imageinfo/QualifyValue", polarisation)
    constant = _constant(document, "processinfo/CalibrationConst", polarisation)
    gain = 1.0
    if calibrate:
        if qualify is None or constant is None:
            name = "imageinfo/QualifyValue" if qualify is None else "processinfo/CalibrationConst"
            raise UnusableError(
                "missing_part",
                f"{document.path.name} has no {name}/{polarisation}: without it {file} cannot be calibrated. Take its "
                "numbers as they are (--no-calibrate), or fetch the product again",
            )
        gain = qualify / _FULL_SCALE * 10 ** (-constant / 20)
    return BandSource(file=file, index=1, imaginary=2, gain=gain)
