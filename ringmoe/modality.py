"""The modality registry: what a sensor's tiles hold. A modality is data, never a branch in the code.

Adding a fifth modality is one ``register(ModalitySpec(...))`` (or a YAML file of the same fields); all else (shards,
embedding, experts, decoder, pictures) loops over the specs. The four of the paper (App. B.1, B.3) are built in.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ringmoe.config import from_dict, read_yaml
from ringmoe.errors import ConfigError

Target = Literal["pixels", "power"]
_DTYPES = ("uint8", "int8", "uint16", "int16", "float32", "complex64", "complex_int16")  # statistics are kept of these
Unit = Literal["dn", "reflectance", "amplitude", "sigma0", "db", "complex"]


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """One modality: its bands, how they are stored, and what is reconstructed (Eq. 5).

    Attributes:
        key: Short name used in file names, expert names and logs.
        title: What a person calls it.
        bands: Physical bands in their fixed order.
        is_complex: Each band is complex and takes two channels, I then Q.
        dtypes: Types that a scene of this modality may hold (numpy names).
        units: Units that its pixels may have; a scene declares one of them.
        wavelengths_nm: Range of each band, lowest and highest, in nanometres.
        target: What the decoder reconstructs: the pixels, or the power summed over complex bands (Eq. 5).
        optional_bands: A scene may lack bands; they are then declared absent in the record, never filled in silence.
        display: Indices of the one or three bands that a picture shows.
    """

    key: str
    title: str
    bands: tuple[str, ...]
    is_complex: bool = False
    dtypes: tuple[str, ...]
    units: tuple[Unit, ...]
    wavelengths_nm: tuple[tuple[float, float], ...]
    target: Target = "pixels"
    optional_bands: bool = False
    display: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ConfigError: Fields contradict each other.
        """
        # equal specs shall be written equally, and 450 == 450.0
        ranges = tuple((float(low), float(high)) for low, high in self.wavelengths_nm)
        object.__setattr__(self, "wavelengths_nm", ranges)
        if not self.key.isidentifier():
            raise ConfigError(
                f"modality key {self.key!r} must be letters, digits and underscores: it names files and experts"
            )
        if unknown := [dtype for dtype in self.dtypes if dtype not in _DTYPES]:
            raise ConfigError(f"modality {self.key!r}: types {', '.join(unknown)}; there may be {', '.join(_DTYPES)}")
        if len(self.wavelengths_nm) != len(self.bands):
            raise ConfigError(
                f"modality {self.key!r}: {len(self.bands)} bands but {len(self.wavelengths_nm)} wavelength ranges"
            )
        if self.target == "power" and not self.is_complex:
            raise ConfigError(f"modality {self.key!r}: a power target needs complex bands (is_complex: true)")

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names as the tile stores them: ``("HH_I", "HH_Q", ...)`` for complex bands, else the bands."""
        if not self.is_complex:
            return self.bands
        return tuple(f"{band}_{part}" for band in self.bands for part in ("I", "Q"))

    @property
    def num_channels(self) -> int:
        """Channels of a tile: two for each complex band."""
        return len(self.bands) * (2 if self.is_complex else 1)

    @property
    def measured(self) -> tuple[str, ...]:
        """What statistics are kept of: the channels, and for complex bands the power summed over them."""
        return (*self.channels, "power") if self.is_complex else self.channels

    @property
    def num_target_channels(self) -> int:
        """Channels that the decoder predicts: one for power, else all (Eq. 5)."""
        return 1 if self.target == "power" else self.num_channels

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, for manifests and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModalitySpec":
        """Rebuilds a spec from plain values.

        Raises:
            ConfigError: Unknown or missing fields, or a spec that contradicts itself.
        """
        return from_dict(cls, values, where=f"modality {values.get('key', '?')!r}")


_REGISTRY: dict[str, ModalitySpec] = {}


def register(spec: ModalitySpec) -> ModalitySpec:
    """Adds a modality; registering the same spec again changes nothing.

    Raises:
        ConfigError: Another spec already has this key.
    """
    known = _REGISTRY.get(spec.key)
    if known is not None and known != spec:
        raise ConfigError(f"modality {spec.key!r} is registered already with other fields: {known} against {spec}")
    _REGISTRY[spec.key] = spec
    return spec


def get(key: str) -> ModalitySpec:
    """The spec of a modality.

    Raises:
        ConfigError: No such modality; the message lists those that exist.
    """
    if key not in _REGISTRY:
        raise ConfigError(
            f"unknown modality {key!r}; known are {', '.join(sorted(_REGISTRY))}. A new one is declared in "
            "a YAML file, see CONTRIBUTING.md"
        )
    return _REGISTRY[key]


def known() -> tuple[ModalitySpec, ...]:
    """All registered modalities in the order of registration."""
    return tuple(_REGISTRY.values())


def load(path: Path) -> tuple[ModalitySpec, ...]:
    """Registers the modalities that a YAML file declares (a list of mappings with the fields of ``ModalitySpec``).

    Raises:
        ConfigError: The file is not such a list, or a spec contradicts itself or a registered one.
    """
    entries = read_yaml(path)
    if not isinstance(entries, Iterable) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{path}: expected a list of modalities, each a mapping with key, title, bands, dtypes, units and "
            "wavelengths_nm"
        )
    return tuple(register(ModalitySpec.from_dict(entry)) for entry in entries)


_C_BAND_NM = (5.5e7, 5.6e7)  # 5.4 GHz, the carrier of GF-3 and Sentinel-1

OPT = register(
    ModalitySpec(
        key="opt",
        title="optical RGB",
        bands=("R", "G", "B"),
        dtypes=("uint8",),
        units=("dn",),
        wavelengths_nm=((590, 710), (466, 620), (430, 545)),
        display=(0, 1, 2),
    )
)
MS = register(
    ModalitySpec(
        key="ms",
        title="multispectral",
        bands=("B", "G", "R", "NIR"),
        dtypes=("uint8", "uint16", "int16", "float32"),
        units=("dn", "reflectance"),
        wavelengths_nm=((450, 520), (520, 590), (630, 690), (770, 890)),
        display=(2, 1, 0),
    )
)
SAR_L1 = register(
    ModalitySpec(
        key="sar_l1",
        title="complex quad-pol SAR",
        bands=("HH", "HV", "VH", "VV"),
        is_complex=True,
        dtypes=("complex64", "complex_int16"),
        units=("complex",),
        wavelengths_nm=(_C_BAND_NM,) * 4,
        target="power",
        optional_bands=True,
    )
)
SAR_L2 = register(
    ModalitySpec(
        key="sar_l2",
        title="SAR amplitude",
        bands=("A",),
        dtypes=("uint8", "uint16", "int16", "float32"),
        units=("dn", "amplitude", "sigma0", "db"),
        wavelengths_nm=(_C_BAND_NM,),
    )
)
