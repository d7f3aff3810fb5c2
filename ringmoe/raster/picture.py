"""Tiles to small pictures: the numbers of a tile that a person is shown, before they are stretched to colours.

Every modality is shown by what its definition says of it: microwaves by their power in decibels, complex bands of all
four polarisations by the Pauli components of their scattering (Cloude and Pottier, 1996), all else by its display
bands. Pixels are averaged over small blocks, of microwaves the power: what looks alike there was alike.
"""

import numpy as np

from ringmoe.modality import ModalitySpec, Unit
from ringmoe.raster.quality import is_nodata
from ringmoe.raster.scene import Pixels

# D displayed channels (1 or 3), C channels, H rows, W columns of a tile; h, w of its picture

LARGEST = 96
"""Height and width of the largest picture, pixels."""

DARKEST_DB = -120.0
"""What is shown of a pixel without any power."""

_SHORTEST_MICROWAVE_NM = 1e6
_PAULI = ("HH", "HV", "VH", "VV")


def is_microwave(spec: ModalitySpec) -> bool:
    """Whether a modality is shown in decibels."""
    return spec.is_complex or all(low >= _SHORTEST_MICROWAVE_NM for low, _ in spec.wavelengths_nm)


def displayed_names(spec: ModalitySpec) -> tuple[str, ...]:
    """What the one or three channels of a picture are: red, green, blue, or grey."""
    if spec.is_complex:
        return ("|HH - VV|", "|HV + VH|", "|HH + VV|") if set(_PAULI) <= set(spec.bands) else ("power",)
    return tuple(spec.bands[band] for band in spec.display)


def picture(
    pixels_CHW: Pixels, spec: ModalitySpec, *, units: Unit, nodata: float | None, absent: tuple[str, ...]
) -> Pixels:
    """The displayed numbers of a tile.

    Args:
        pixels_CHW: (C, H, W) as stored; I and Q of complex bands.
        spec: The modality.
        units: What the numbers are.
        nodata: Value of entries without data; None where there is none.
        absent: Bands that the scene does not have. Where not all polarisations are there, all that are make one grey.

    Returns:
        (D, h, w) float32, at most ``LARGEST`` high and wide: numbers of the display bands, or decibels of microwaves.
        NaN where there is no data, or none that is finite.
    """
    shown_CHW = pixels_CHW if spec.is_complex else pixels_CHW[list(spec.display)]
    values_CHW = shown_CHW.astype(np.float32)
    if nodata is not None:
        values_CHW[is_nodata(shown_CHW, nodata)] = np.nan
    if not is_microwave(spec):
        return _averaged(values_CHW)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # dropped tiles may hold anything
        if spec.is_complex:
            power_DHW = _power(dict(zip(spec.bands, values_CHW[::2] + 1j * values_CHW[1::2], strict=True)), absent)
        elif units == "db":
            power_DHW = 10.0 ** (values_CHW / 10.0)
        else:
            power_DHW = values_CHW if units == "sigma0" else values_CHW**2
        power_Dhw = _averaged(power_DHW)
        decibels_Dhw = np.maximum(10.0 * np.log10(power_Dhw), np.float32(DARKEST_DB))
    return np.broadcast_to(decibels_Dhw, (len(displayed_names(spec)), *decibels_Dhw.shape[1:]))


def _power(bands: dict[str, Pixels], absent: tuple[str, ...]) -> Pixels:
    """Power of the Pauli components (odd bounce is blue, even bounce red, volume green), or of all bands; (D, H, W)."""
    if set(_PAULI) <= set(bands) - set(absent):
        hh, hv, vh, vv = (bands[name] for name in _PAULI)
        pauli_DHW: Pixels = np.abs(np.stack((hh - vv, hv + vh, hh + vv))) ** 2 / 2.0
        return pauli_DHW
    present_BHW = np.stack([band for name, band in bands.items() if name not in absent])
    power_1HW: Pixels = (np.abs(present_BHW) ** 2).sum(axis=0, keepdims=True)
    return power_1HW


def _averaged(values_DHW: Pixels) -> Pixels:
    """Means over square blocks, of the pixels with data; NaN where a block has none."""
    height, width = values_DHW.shape[1:]
    side = -(-max(height, width) // LARGEST)
    rows, cols = height // side, width // side
    values_DHW = values_DHW[:, : rows * side, : cols * side]
    valid_DHW = np.isfinite(values_DHW)
    total_Dhw, count_Dhw = (_block_sums(part, side) for part in (np.where(valid_DHW, values_DHW, 0), valid_DHW))
    means: Pixels = np.divide(total_Dhw, count_Dhw, out=np.full_like(total_Dhw, np.nan), where=count_Dhw > 0)
    return means


def _block_sums(values_DHW: Pixels, side: int) -> Pixels:
    """Sums over square blocks, float32; slices are added because reductions over short axes are slow."""
    rows = np.add.reduce([values_DHW[:, i::side] for i in range(side)], dtype=np.float32)
    sums: Pixels = np.add.reduce([rows[:, :, i::side] for i in range(side)])
    return sums
