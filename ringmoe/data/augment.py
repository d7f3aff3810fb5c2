"""Random resized crop and flip of a batch (App. B.3), and a random phase of complex bands.

Every random number is a function of the image's key (``ringmoe.counter``), drawn for the whole batch at once.

**Pixels** are resampled with a triangle as wide as the larger of the two pixel grids: bilinear where the crop is
enlarged, anti-aliased where it is reduced.

**Complex** bands are resampled by the nearest pixel. Speckle is uncorrelated from pixel to pixel, so a weighted sum of
pixels has ``sum(w^2)`` of their power: bilinear weights lose 5/9 of it on average, and lose nothing on a pixel's centre
and 3/4 of it between four of them. One factor for the image mends the average but leaves that pattern, and the factor
that is right for speckle is wrong for a bright coherent target, whose power goes with ``sum(w)^2``. A single weight of
one has ``sum(w) = sum(w^2) = 1``: power is kept for both, each output is a scattering vector that was measured, and so
phases, polarimetric ratios and the distribution of speckle survive as they are.

The **absolute phase** of a complex image depends on how many wavelengths lie between sensor and ground: it says nothing
of the ground. Turning all bands of an image by one random angle changes neither power nor what one polarisation is to
another, and keeps a model from learning the speckle of few scenes by heart.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ringmoe import counter
from ringmoe.errors import ConfigError

# B images, C channels, H x W pixels of the tile, S side of the output

Resampling = Literal["triangle", "nearest"]

# keep crops and phases apart from masks and noise, which draw from the same image keys
_SALT, _PHASE_SALT = counter.key("augment"), counter.key("phase")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random resized crop (App. B.3) and horizontal flip.

    Attributes:
        area: Smallest and largest share of the tile's area, drawn evenly.
        aspect: Smallest and largest ratio of width to height, drawn evenly in its logarithm within what fits.
        flip: Probability of a horizontal flip.
    """

    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A range is empty, or does not hold what always fits.
        """
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"crop area {self.area} must be a range of shares above 0, at most 1")
        if not 0 < self.aspect[0] <= 1 <= self.aspect[1]:
            raise ConfigError(f"crop aspect {self.aspect} must be a range of positive ratios around 1")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"crop flip {self.flip} must be a probability")


class Crops(NamedTuple):
    """Where each image is cut from its tile, in whole pixels.

    Attributes:
        top_B: First row.
        left_B: First column.
        height_B: Rows.
        width_B: Columns.
        flip_B: Whether left and right are exchanged.
    """

    top_B: Tensor
    left_B: Tensor
    height_B: Tensor
    width_B: Tensor
    flip_B: Tensor


def random_crops(keys_B: Tensor, side: int, config: CropConfig) -> Crops:
    """Draws one crop for each key.

    Args:
        keys_B: (B,) int64 keys of the images.
        side: Height and width of the tiles, pixels.
        config: Range of the draws.
    """
    area_B, aspect_B, top_B, left_B, flip_B = counter.uniform(counter.mix(keys_B, _SALT), 5).unbind(-1)
    area_B = config.area[0] + area_B * (config.area[1] - config.area[0])
    # a crop of this area fits into the square for area <= aspect <= 1 / area: nothing is drawn in vain
    low_B = area_B.clamp(min=config.aspect[0]).log()
    high_B = area_B.reciprocal().clamp(max=config.aspect[1]).log()
    aspect_B = (low_B + aspect_B * (high_B - low_B)).exp()
    height_B = (side * (area_B / aspect_B).sqrt()).round().clamp(1, side)
    width_B = (side * (area_B * aspect_B).sqrt()).round().clamp(1, side)
    return Crops(
        top_B=(top_B * (side - height_B + 1)).long(),
        left_B=(left_B * (side - width_B + 1)).long(),
        height_B=height_B.long(),
        width_B=width_B.long(),
        flip_B=flip_B < config.flip,
    )


def turn_phase(pixels_BCHW: Tensor, keys_B: Tensor) -> Tensor:
    """Turns the complex bands of each image by one random angle.

    Args:
        pixels_BCHW: (B, C, H, W) float32, I and Q of each band one after the other, all in one unit.
        keys_B: (B,) int64 keys of the images.

    Returns:
        (B, C, H, W) float32.
    """
    angle_B = 2 * math.pi * counter.uniform(counter.mix(keys_B, _PHASE_SALT), 1)[:, 0]
    turn_B111 = torch.polar(torch.ones_like(angle_B), angle_B)[:, None, None, None]
    bands_BNHW = torch.complex(pixels_BCHW[:, 0::2], pixels_BCHW[:, 1::2]) * turn_B111
    return torch.view_as_real(bands_BNHW).movedim(-1, 2).flatten(1, 2)


def whole_tiles(num_images: int, side: int) -> Crops:
    """The crops of evaluation: the whole tile, as it is."""
    zeros_B = torch.zeros(num_images, dtype=torch.int64)
    sides_B = torch.full((num_images,), side)
    return Crops(zeros_B, zeros_B, sides_B, sides_B, zeros_B.bool())


def resample(pixels_BCHW: Tensor, crops: Crops, size: int, resampling: Resampling) -> Tensor:
    """Cuts each image's crop and resamples it to ``size`` x ``size`` pixels.

    Args:
        pixels_BCHW: (B, C, H, W) float32, square tiles.
        crops: One crop for each image.
        size: Side of the output, S.
        resampling: How: see the module's text.

    Returns:
        (B, C, S, S) float32.
    """
    if resampling == "nearest":
        return _nearest(pixels_BCHW, crops, size)
    output_BCSS = pixels_BCHW.new_empty(*pixels_BCHW.shape[:2], size, size)
    # image by image, in the cache: two batched products with a weight matrix for each image take 2 to 4 times as long
    for i, (top, left, height, width, flip) in enumerate(torch.stack(crops, dim=-1).tolist()):
        crop_1CHW = pixels_BCHW[i : i + 1, :, top : top + height, left : left + width]
        image_CSS = F.interpolate(crop_1CHW, size=(size, size), mode="bilinear", antialias=True)[0]
        output_BCSS[i] = image_CSS.flip(-1) if flip else image_CSS
    return output_BCSS


def _nearest(pixels_BCHW: Tensor, crops: Crops, size: int) -> Tensor:
    """The pixel under the centre of each output pixel."""
    batch, channels, _, side = pixels_BCHW.shape
    rows_BS = _pixels_under_centres(crops.top_B, crops.height_B, size)
    cols_BS = _pixels_under_centres(crops.left_B, crops.width_B, size)
    cols_BS = torch.where(crops.flip_B[:, None], cols_BS.flip(-1), cols_BS)
    places_BSS = rows_BS[:, :, None] * side + cols_BS[:, None, :]
    places_BCP = places_BSS.flatten(1)[:, None].expand(batch, channels, size * size)
    return pixels_BCHW.flatten(2).gather(2, places_BCP).view(batch, channels, size, size)


def _pixels_under_centres(start_B: Tensor, length_B: Tensor, size: int) -> Tensor:
    """Along one side: the pixel of the tile in which the centre of each output pixel lies, (B, S) int64."""
    # centre = start + (i + 1/2) * length / size, in whole numbers so that no rounding can leave the crop
    odd_S = 2 * torch.arange(size) + 1
    return start_B[:, None] + odd_S * length_B[:, None] // (2 * size)
