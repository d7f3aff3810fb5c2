"""The two passive sensors: sunlight on the ground, through the air, onto an 8-bit camera or a multispectral scanner."""

from dataclasses import dataclass

import numpy as np

from ringmoe.raster.synth.covers import Cover
from ringmoe.raster.synth.fields import Array, blur, cast_shadow, generator
from ringmoe.raster.synth.ground import Ground

# H rows, W columns, C bands

_SKY = 0.34  # share of the light that comes from the whole sky and reaches into shadows
_SKY_TINT = (1.35, 1.08, 0.92, 0.70)  # B, G, R, NIR of skylight against sunlight
_HAZE = (0.034, 0.022, 0.014)  # B, G, R that the air adds in the camera's image
_WHITE = 0.40  # reflectance at which the camera saturates
_GAMMA = 1.9
_CAMERA_NOISE_DN = 1.2
_SCANNER_NOISE = 0.0018
_STEEPEST = 1.6  # slopes beyond are walls, which a sensor overhead does not see


@dataclass(frozen=True)
class Sun:
    """Where the sun stands.

    Attributes:
        azimuth: Direction towards it, radians from +x (east) towards +y (south).
        elevation: Height above the horizon, radians.
    """

    azimuth: float
    elevation: float


def sun_of(place: tuple[int, int, int]) -> Sun:
    """The sun of a scene, the same at both dates: a morning or noon on the northern hemisphere."""
    rng = generator(*place, "sun")
    return Sun(float(np.deg2rad(rng.uniform(35, 115))), float(np.deg2rad(rng.uniform(38, 58))))


def light(ground: Ground, sun: Sun) -> Array:
    """Irradiance of each pixel and band against that of flat open ground; (C, H, W) float32."""
    surface_HW = ground.elevation_HW + ground.height_HW
    down_HW, right_HW = np.gradient(surface_HW)
    steep_HW = np.maximum(1.0, np.hypot(down_HW, right_HW) / _STEEPEST)
    down_HW, right_HW = down_HW / steep_HW, right_HW / steep_HW
    flat_HW = np.isin(ground.cover_HW, (Cover.WATER, Cover.SHIP, Cover.VEHICLE))
    down_HW[flat_HW] = right_HW[flat_HW] = 0.0
    towards_x, towards_y = np.cos(sun.azimuth), np.sin(sun.azimuth)
    cosine_HW = np.sin(sun.elevation) - np.cos(sun.elevation) * (right_HW * towards_x + down_HW * towards_y)
    cosine_HW = np.maximum(0.0, cosine_HW) / np.sqrt(1 + down_HW**2 + right_HW**2) / np.sin(sun.elevation)
    hidden_HW = cast_shadow(surface_HW, sun.azimuth, sun.elevation, float(ground.height_HW.max()) + 2.0)
    direct_HW = cosine_HW * (1.0 - blur(hidden_HW, 0.5))
    sky_C11 = np.array(_SKY_TINT, dtype=np.float32)[:, None, None]
    light_CHW: Array = ((1.0 - _SKY) * direct_HW[None] + _SKY * sky_C11).astype(np.float32)
    return light_CHW


def radiance(ground: Ground, sun: Sun) -> Array:
    """Light that leaves the ground, as reflectance under the sun of the scene; (C, H, W) float32."""
    lit: Array = ground.albedo_CHW * light(ground, sun)
    return lit


def camera(radiance_CHW: Array, rng: np.random.Generator) -> Array:
    """An 8-bit RGB picture: haze, optics, film curve, noise.

    Args:
        radiance_CHW: (4, H, W) light in blue, green, red, near infrared.
        rng: Where the noise comes from.

    Returns:
        (3, H, W) uint8 in the order R, G, B; 0 does not occur, it would read as a black border.
    """
    bands = [blur(radiance_CHW[i], 0.6) + _HAZE[i] for i in (2, 1, 0)]
    picture_CHW = 255.0 * np.clip(np.stack(bands) / _WHITE, 0.0, 1.0) ** (1.0 / _GAMMA)
    picture_CHW += _CAMERA_NOISE_DN * rng.standard_normal(picture_CHW.shape, dtype=np.float32)
    return np.clip(np.rint(picture_CHW), 1, 255).astype(np.uint8)


def scanner(radiance_CHW: Array, rng: np.random.Generator) -> Array:
    """Surface reflectance times 10000 in the bands B, G, R, NIR; (4, H, W) uint16, never 0."""
    bands_CHW = np.stack([blur(band_HW, 0.8) for band_HW in radiance_CHW])
    bands_CHW += _SCANNER_NOISE * rng.standard_normal(bands_CHW.shape, dtype=np.float32)
    return np.clip(np.rint(10000.0 * bands_CHW), 1, 65535).astype(np.uint16)
