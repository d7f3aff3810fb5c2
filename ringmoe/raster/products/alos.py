"""ALOS PALSAR and ALOS-2 PALSAR-2 Level 1.1 in the CEOS format: one complex image file for each polarisation.

``sigma0 [dB] = 10 log10(I^2 + Q^2) + CF - 32``, with the calibration factor CF from the radiometric data record of the
leader file (JAXA, calibration results of PALSAR and PALSAR-2 standard products). Calibrated pixels are complex
amplitudes whose square is sigma nought. Places come from the headers of the image lines, where they hold any.
"""

import re
import struct
from datetime import datetime
from pathlib import Path

from ringmoe.raster.markup import number, read_bytes
from ringmoe.raster.products.draft import Draft, FoundProduct
from ringmoe.raster.products.sentinel1 import CALIBRATED, UNCALIBRATED
from ringmoe.raster.scene import BandSource, ProductInfo, UnusableError

ENTRY = re.compile(
    r"LED-(?P<stem>(?P<satellite>ALPSR|ALOS2)\w\d+(-\d{6})?-(?P<mode>\w+)(?P<level>1\.[15]|2\.1|3\.1)_?\w*)"
)
PREFIXES = ("VOL-", "LED-", "TRL-", "IMG-HH-", "IMG-HV-", "IMG-VH-", "IMG-VV-")

_POLARISATIONS = ("HH", "HV", "VH", "VV")
_SENSORS = {"ALPSR": "ALOS PALSAR", "ALOS2": "ALOS-2 PALSAR-2"}
_SUMMARY, _RADIOMETRY = bytes((18, 10, 18, 20)), bytes((18, 50, 18, 20))  # types of the leader's records
_OFFSET_DB = 32.0


def read(found: FoundProduct, calibrate: bool) -> list[Draft]:
    """The one scene of the product.

    Raises:
        UnusableError: The leader is damaged, there is no image, or it is of another level.
    """
    entry = ENTRY.fullmatch(found.entry.name)
    assert entry is not None, "products are found by this name"
    if entry["level"] != "1.1":
        raise UnusableError(
            "other_product", f"{found.entry.name} is of level {entry['level']}, detected; read are complex ones, 1.1"
        )
    files = {name: f"IMG-{name}-{found.stem}" for name in _POLARISATIONS}
    files = {name: file for name, file in files.items() if (found.root / file).is_file()}
    if not files:
        raise UnusableError(
            "missing_part",
            f"there is no IMG-HH-{found.stem}, nor one of HV, VH, VV, beside {found.entry.name}. Fetch the product "
            "again, whole (ScanSAR, with one file for each beam, is not read)",
        )
    records = _records(found.entry)
    gain = 10 ** ((_number(records, _RADIOMETRY, 21, found.entry, "calibration factor") - _OFFSET_DB) / 20)
    sensor = _SENSORS[entry["satellite"]]
    return [
        Draft(
            modality="sar_l1",
            bands={
                name: BandSource(file=file, index=1, gain=gain if calibrate else 1.0) for name, file in files.items()
            },
            units="complex",
            sensor=sensor,
            acquired=_time(records, found.entry),
            radiometry=CALIBRATED if calibrate else UNCALIBRATED,
            info=ProductInfo(kind=f"{sensor} {entry['mode']} L1.1", identifier=found.stem, level="L1.1"),
        )
    ]


def _records(leader: Path) -> dict[bytes, bytes]:
    """The records of a leader file by type; the first of each type counts.

    Raises:
        UnusableError: It is damaged or cut off.
    """
    content = read_bytes(leader)
    records: dict[bytes, bytes] = {}
    start = 0
    while start + 12 <= len(content):
        kind = content[start + 4 : start + 8]
        (length,) = struct.unpack(">I", content[start + 8 : start + 12])
        if length < 12 or start + length > len(content):
            break
        records.setdefault(kind, content[start : start + length])
        start += length
    if missing := [
        what
        for what, kind in (("data set summary", _SUMMARY), ("radiometric data", _RADIOMETRY))
        if kind not in records
    ]:
        raise UnusableError(
            "missing_part", f"{leader.name} has no record of {' or '.join(missing)}, or is cut off. Fetch it again"
        )
    return records


def _number(records: dict[bytes, bytes], kind: bytes, first: int, leader: Path, what: str) -> float:
    """A number of sixteen characters; ``first`` is its first byte, from 1."""
    text = records[kind][first - 1 : first + 15].decode("ascii", "replace").strip()
    return number(text, leader, what)


def _time(records: dict[bytes, bytes], leader: Path) -> str:
    """Time of the scene's centre, ISO 8601, from "YYYYMMDDhhmmssttt".

    Raises:
        UnusableError: It is no time.
    """
    text = records[_SUMMARY][68:100].decode("ascii", "replace").strip()
    try:
        return f"{datetime.strptime(text[:14], '%Y%m%d%H%M%S').isoformat()}.{text[14:17] or '000'}Z"
    except ValueError as error:
        raise UnusableError(
            "unreadable", f"{leader.name}: scene centre time is {text!r}; expected YYYYMMDDhhmmssttt"
        ) from error
