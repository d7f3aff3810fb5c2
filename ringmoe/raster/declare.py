"""Declarations: what people know of scenes that the files do not say, in a YAML file.

A file holds ``scenes:``, a list of mappings with the fields of ``Declaration``. The first whose pattern matches a
scene's name speaks for it; what it leaves out is taken from the file itself. Example::

    scenes:
      - match: "naip/*.tif"          # a glob on the end of the scene's relative name
        modality: ms
        bands: [R, G, B, NIR]        # in the order of the file; null for a band that is not used
        units: dn
        sensor: NAIP
      - match: "slc/*_dualpol.tif"
        modality: sar_l1
        bands: {VH: 2, VV: 1}        # or by number, from 1
        absent: [HH, HV]             # what the scene does not have is said, never filled in silence
      - match: "levir/A/*.png"
        modality: opt
        place: "{name}"              # levir/B has files of the same names (docs/groups.md)
        member: before
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from ringmoe import modality as registry
from ringmoe.config import from_dict, load_yaml
from ringmoe.errors import ConfigError

_MEMBER = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What is declared of the scenes that a pattern matches. None: the file itself is asked.

    Attributes:
        match: Glob, compared with the end of the scene's relative name ("*.tif", "naip/*.tif").
        modality: Key of the modality.
        bands: Names of the modality's bands in the order of the file (None for a band that is not used), or the
            number (from 1) of each; needs ``modality``.
        absent: Bands of the modality that the scene does not have.
        units: What the numbers are.
        sensor: Instrument.
        acquired: Acquisition time, ISO 8601.
        gsd: Ground sampling distance, metres.
        nodata: Value of pixels without data.
        place: Name of the ground that the scenes show: those of one name are one group. "{folder}" and "{name}" stand
            for the folder and the name of the scene's file.
        member: What the scene is called within its place; else its modality, with the date where it needs one.
    """

    match: str
    modality: str | None = None
    bands: tuple[str | None, ...] | dict[str, int] | None = None
    absent: tuple[str, ...] = ()
    units: str | None = None
    sensor: str | None = None
    acquired: str | None = None
    gsd: float | None = None
    nodata: float | None = None
    place: str | None = None
    member: str | None = None

    def __post_init__(self) -> None:
        """Checks the fields against the modality.

        Raises:
            ConfigError: Unknown modality, band or unit; bands that are missing or there twice; a time or distance that
                is none; no name of a member.
        """
        if self.member is not None and not _MEMBER.fullmatch(self.member):
            raise ConfigError(
                f"{self._where}: member {self.member!r} names files: it must be lower-case letters, digits, - and _"
            )
        if self.gsd is not None and not (math.isfinite(self.gsd) and self.gsd > 0):
            raise ConfigError(f"{self._where}: gsd is {self.gsd}; expected a distance in metres above zero")
        if self.acquired is not None and not _is_time(self.acquired):
            raise ConfigError(
                f"{self._where}: acquired is {self.acquired!r}; expected an ISO 8601 time such as 2021-05-06T10:30:00Z"
            )
        if self.modality is None:
            if self.bands is not None or self.absent:
                raise ConfigError(f"{self._where}: bands are declared but not of which modality; add it")
            return
        spec = registry.get(self.modality)
        if self.units is not None and self.units not in spec.units:
            raise ConfigError(f"{self._where}: units {self.units!r}, but {spec.key} knows {', '.join(spec.units)}")
        if self.bands is None:
            return
        named = Counter([name for name, _ in self._numbered()] + list(self.absent))
        if set(named) != set(spec.bands) or max(named.values()) > 1 or (self.absent and not spec.optional_bands):
            may_lack = "each once, or under absent" if spec.optional_bands else "each once"
            raise ConfigError(
                f"{self._where}: bands {', '.join(named.elements())}, but {spec.key} has "
                f"{', '.join(spec.bands)}: {may_lack}"
            )
        numbers = [number for _, number in self._numbered()]
        if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise ConfigError(f"{self._where}: bands are numbered from 1 and used once; found {numbers}")

    @property
    def band_indices(self) -> tuple[int | None, ...] | None:
        """Raster band (from 1) of each of the modality's bands, None where absent; None where nothing is declared."""
        if self.modality is None or self.bands is None:
            return None
        numbers = dict(self._numbered())
        return tuple(numbers.get(name) for name in registry.get(self.modality).bands)

    def place_of(self, name: str) -> str | None:
        """The declared place of the scene of this relative name."""
        if self.place is None:
            return None
        path = PurePosixPath(name)
        return self.place.replace("{folder}", path.parent.as_posix()).replace("{name}", path.name)

    @property
    def _where(self) -> str:
        return f"declaration of scenes {self.match!r}"

    def _numbered(self) -> list[tuple[str, int]]:
        """Name and number of each declared band."""
        if isinstance(self.bands, Mapping):
            return list(self.bands.items())
        return [(name, number) for number, name in enumerate(self.bands or (), start=1) if name is not None]


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Declarations:
    """The declarations of one file, in its order.

    Attributes:
        scenes: The declarations; the first that matches counts.
    """

    scenes: tuple[Declaration, ...] = ()

    def of(self, name: str) -> Declaration | None:
        """The declaration that speaks for the scene of this relative name."""
        return next((entry for entry in self.scenes if PurePosixPath(name).match(entry.match)), None)

    @classmethod
    def load(cls, path: Path) -> "Declarations":
        """Reads a declarations file.

        Raises:
            ConfigError: The file cannot be read, or a declaration contradicts itself or the registry.
        """
        return from_dict(cls, load_yaml(path), where=str(path))
