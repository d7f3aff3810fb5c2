"""``cloud_spectral``: a guess at clouds from visible bands alone, for optical scenes whose product brings no mask.

A pixel counts as cloud where it is bright, white and hazy at once, after the first pass of Fmask (Zhu and Woodcock
2012, Remote Sensing of Environment 118, section 3.1.1) with stricter limits, since the bands that Fmask confirms with
(short-wave and thermal infrared) are not there:

- bright: the least of blue, green and red is above 0.20 in reflectance, or above 0.80 of the full scale of an 8-bit
  picture, whose stretch is not known;
- white: their absolute deviations from their mean add up to less than 0.30 of it (Fmask: 0.70; the index is of
  Gomez-Chova et al. 2007);
- hazy: the haze-optimised transform blue - 0.5 red - 0.08 is above zero (Zhang et al. 2002, with Fmask's constants);
- with a near infrared band: near infrared over red lies between 0.75 (Fmask, against bright rock) and 2.

It is conservative. It sees thick cloud only, no thin cloud and no shadow. Snow and salt look the same to it. A white
roof does too: so only scenes whose tiles are known to be at least 500 m wide are judged, which no roof fills. Numbers
whose relation to reflectance is not known, 8-bit ones aside, are not judged either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringmoe.raster.scene import Pixels, Scene

# C channels, H rows, W columns

_VISIBLE = ("B", "G", "R")
_BRIGHT, _BRIGHT_PICTURE = 0.20, 0.80
_WHITE = 0.30
_HAZE_SLOPE, _HAZE_OFFSET = 0.5, 0.08
_INFRARED_OVER_RED = (0.75, 2.0)
_LEAST_GROUND = 500.0  # metres
_PICTURE = "uint8"


@dataclass(frozen=True)
class CloudTest:
    """How the pixels of one scene are tested.

    Attributes:
        visible: Channels of blue, green and red.
        infrared: Channel of the near infrared; None where there is none.
        scale: Factor from numbers to reflectance, or to shares of a picture's full scale.
        offset: Summand.
        bright: Least value of a bright pixel.
    """

    visible: tuple[int, int, int]
    infrared: int | None
    scale: float
    offset: float
    bright: float

    @property
    def least(self) -> float:
        """The number above which all visible channels of a cloud lie: where a channel's maximum is below, none is."""
        return (self.bright - self.offset) / self.scale

    def __call__(self, pixels_CHW: Pixels) -> Pixels:
        """Which pixels are cloud: (C, H, W) to (H, W) booleans."""
        visible_3HW, infrared_HW = self._reflectance(pixels_CHW[list(self.visible)]), None
        if self.infrared is not None:
            infrared_HW = self._reflectance(pixels_CHW[self.infrared])
        blue_HW, _, red_HW = visible_3HW
        mean_HW = visible_3HW.mean(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN compares as no cloud
            cloud_HW: Pixels = visible_3HW.min(axis=0) > self.bright
            cloud_HW &= np.abs(visible_3HW - mean_HW).sum(axis=0) < _WHITE * mean_HW
            cloud_HW &= blue_HW - _HAZE_SLOPE * red_HW > _HAZE_OFFSET
            if infrared_HW is not None:
                low, high = _INFRARED_OVER_RED
                cloud_HW &= (infrared_HW > low * red_HW) & (infrared_HW < high * red_HW)
        return cloud_HW

    def _reflectance(self, pixels: Pixels) -> Pixels:
        reflectance: Pixels = pixels * np.float32(self.scale) + np.float32(self.offset)
        return reflectance


def cloud_test(scene: Scene, bands: Sequence[str], tile: int) -> CloudTest | None:
    """The test for a scene.

    Args:
        scene: The scene.
        bands: Names of its channels, in their order.
        tile: Side of its tiles, pixels.

    Returns:
        None where the scene is not optical, its tiles are too small on the ground or of unknown size, or nothing is
        known of its numbers.
    """
    if not set(_VISIBLE) <= set(bands) or scene.gsd is None or scene.gsd * tile < _LEAST_GROUND:
        return None
    if scene.radiometry is not None and "reflectance" in scene.radiometry.quantity:
        scale, offset, bright = scene.radiometry.scale, scene.radiometry.offset, _BRIGHT
    elif scene.units == "reflectance" and scene.dtype.startswith("float"):
        scale, offset, bright = 1.0, 0.0, _BRIGHT
    elif scene.units == "dn" and scene.dtype == _PICTURE:
        scale, offset, bright = 1 / 255, 0.0, _BRIGHT_PICTURE
    else:
        return None
    blue, green, red = (bands.index(name) for name in _VISIBLE)
    infrared = bands.index("NIR") if "NIR" in bands else None
    return CloudTest((blue, green, red), infrared, scale, offset, bright)
