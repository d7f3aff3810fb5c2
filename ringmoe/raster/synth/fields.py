"""Random fields, smoothing and shifts on square rasters: the paint box of the synthetic landscape, in numpy alone."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ringmoe import counter

# H rows, W columns; coordinates are (x, y) in pixels from the upper left corner, pixel centres at half-integers

Array = npt.NDArray[Any]


def generator(*parts: int | str) -> np.random.Generator:
    """A generator of its own for each name, so that one more draw in one place changes nothing in another."""
    return np.random.default_rng(counter.key("synth", *parts))


def fractal(rng: np.random.Generator, size: int, slope: float, *, largest: float | None = None) -> Array:
    """A Gaussian field whose amplitude falls with spatial frequency as ``f ** -slope``.

    Args:
        rng: Where the noise comes from.
        size: Height and width, pixels.
        slope: 0 is white noise, 2 is like terrain.
        largest: Wavelength in pixels above which the spectrum is flat; None lets it rise up to the whole raster.

    Returns:
        (H, W) float32 of mean 0 and variance 1.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency = np.maximum(frequency, 1.0 / (largest or size))
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) * frequency**-slope
    spectrum[0, 0] = 0.0
    field_HW = np.fft.irfft2(spectrum, s=(size, size))
    normal_HW: Array = (field_HW / field_HW.std()).astype(np.float32)
    return normal_HW


def shift(field_HW: Array, rows: int, cols: int) -> Array:
    """The field moved down by ``rows`` and right by ``cols``; what comes in repeats the edge."""
    height, width = field_HW.shape
    row_ids = np.clip(np.arange(height) - rows, 0, height - 1)
    col_ids = np.clip(np.arange(width) - cols, 0, width - 1)
    moved: Array = field_HW[row_ids][:, col_ids]
    return moved


def blur(field_HW: Array, sigma: float) -> Array:
    """Gaussian smoothing, separable, with the edges repeated; (H, W) float32."""
    reach = max(1, int(np.ceil(3 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    smooth = field_HW.astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(smooth, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)], mode="edge")
        length = smooth.shape[axis]
        smooth = np.zeros_like(smooth)
        for i, tap in enumerate(taps):
            smooth += tap * (padded[i : i + length] if axis == 0 else padded[:, i : i + length])
    return smooth


def dilate(mask_HW: Array, reach: int) -> Array:
    """The mask grown by ``reach`` pixels to every side (a square)."""
    for axis in (0, 1):
        steps = [(k, 0) if axis == 0 else (0, k) for k in range(-reach, reach + 1)]
        mask_HW = np.logical_or.reduce([shift(mask_HW, rows, cols) for rows, cols in steps])
    return mask_HW


def cast_shadow(surface_HW: Array, azimuth: float, elevation: float, reach: float) -> Array:
    """Pixels that the surface hides from a far source.

    Args:
        surface_HW: Heights in pixels' length.
        azimuth: Direction towards the source, radians from +x towards +y (down).
        elevation: Height of the source above the horizon, radians.
        reach: Largest height difference that can cast a shadow.

    Returns:
        (H, W) bool, True in shadow.
    """
    hidden_HW = np.zeros(surface_HW.shape, dtype=bool)
    for step in range(1, int(np.ceil(reach / np.tan(elevation))) + 1):
        rows, cols = -round(step * np.sin(azimuth)), -round(step * np.cos(azimuth))
        rise = np.hypot(rows, cols) * np.tan(elevation)
        hidden_HW |= shift(surface_HW, rows, cols) - rise > surface_HW
    return hidden_HW


def pixel_centres(size: int) -> tuple[Array, Array]:
    """Coordinates to be broadcast: x of each column (1, W) and y of each row (H, 1)."""
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return centres[None, :], centres[:, None]
