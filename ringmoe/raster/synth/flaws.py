"""What goes wrong with scenes: the flaws that quality rules and quarantine are there for, drawn on purpose."""

from pathlib import Path

import numpy as np

from ringmoe.raster.synth.fields import Array, blur, fractal, pixel_centres

# C channels, H rows, W columns (H = W)

FLAWS = ("border", "cloud", "saturated", "stripes", "empty", "not_finite", "repeat", "broken")
"""Black wedge; clouds; a saturated part; dead rows; a part of one value; infinities; the same ground once more under
another name; a file that breaks while it is read."""

_CLOUD = 0.85  # reflectance of the brightest
_DEAD_ROWS = 4  # every fourth row


def clouds(rng: np.random.Generator, size: int) -> Array:
    """How much of the light of each pixel comes from clouds: (H, W) float32 between 0 and 1; a third is overcast."""
    height_HW = fractal(rng, size, 1.8)
    low, high = np.quantile(height_HW, (0.6, 0.72))
    return blur(np.clip((height_HW - low) / (high - low), 0.0, 1.0), 1.5)


def overcast(reflectance_CHW: Array, cloud_HW: Array) -> Array:
    """The light that a sensor above clouds gets, as reflectance: (C, H, W) float32."""
    texture_HW = _CLOUD * (0.9 + 0.1 * cloud_HW)
    lit_CHW: Array = reflectance_CHW * (1.0 - cloud_HW) + texture_HW * cloud_HW
    return lit_CHW.astype(np.float32)


def spoil(
    pixels_CHW: Array, flaw: str, rng: np.random.Generator, *, highest: float | None, can_be_infinite: bool
) -> Array:
    """Numbers as delivered, with a flaw in them; unchanged by flaws that this kind of number cannot have.

    Args:
        pixels_CHW: (C, H, W) as they would be written.
        flaw: One of ``FLAWS``, or nothing.
        rng: Where the shape of the flaw comes from.
        highest: Number of a saturated pixel; None where the sensor has none.
        can_be_infinite: Whether the file holds floating-point numbers.
    """
    size = pixels_CHW.shape[1]
    spoilt_CHW = pixels_CHW.copy()
    if flaw == "border":
        x_1W, y_H1 = pixel_centres(size)
        angle = rng.uniform(-0.5, 0.5)
        spoilt_CHW[:, x_1W * np.cos(angle) + y_H1 * np.sin(angle) > 0.6 * size] = 0
    elif flaw == "saturated" and highest is not None:
        spoilt_CHW[:, fractal(rng, size, 2.0) > 0.0] = highest
    elif flaw == "stripes":
        spoilt_CHW[:, ::_DEAD_ROWS] = 1
    elif flaw == "empty":
        corner = (slice(None), slice(size // 4, None), slice(0, 3 * size // 4))
        spoilt_CHW[corner] = spoilt_CHW[:, size // 2, size // 2][:, None, None]
    elif flaw == "not_finite" and can_be_infinite:
        spoilt_CHW[:, size // 2 : size // 2 + 8, size // 2 : size // 2 + 8] = np.inf
    return spoilt_CHW


def break_file(path: Path) -> None:
    """Spoils the middle half of a compressed file: its header stays whole, and reading fails on the way."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 4)
        file.write(b"\xff" * (size // 2))
