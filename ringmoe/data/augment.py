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

# B images, C channels, H x W pixels of the tile, S side of the output, K pixels that make up one, R rows

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
    rows, cols = _taps(crops.top_B, crops.height_B, size), _taps(crops.left_B, crops.width_B, size)
    cols = Taps(*(torch.where(crops.flip_B[:, None, None], part.flip(1), part) for part in cols))
    # one side after the other, each as weighted sums of whole rows, for which torch has a kernel that takes a whole
    # batch with weights of each image's own: faster than one by one, and than products with dense matrices of weights
    # (benchmarks/whole_loader.py)
    turned_BCWS = _weighted_rows(pixels_BCHW, rows).transpose(2, 3).contiguous()
    return _weighted_rows(turned_BCWS, cols).transpose(2, 3).contiguous()


class Taps(NamedTuple):
    """What each output pixel is made of along one side; K is what the one with most needs.

    Attributes:
        places_BSK: (B, S, K) int64 pixels of the tile.
        weights_BSK: (B, S, K) float32; those of one output pixel add up to 1, and some are 0.
    """

    places_BSK: Tensor
    weights_BSK: Tensor


def _taps(start_B: Tensor, length_B: Tensor, size: int) -> Taps:
    """A triangle over each output pixel's centre, one pixel to each side of the coarser of both grids."""
    scale_B11 = (length_B.double() / size)[:, None, None]
    reach_B11 = scale_B11.clamp(min=1.0)
    centre_BS1 = (torch.arange(size)[:, None] + 0.5) * scale_B11
    first_BS1 = (centre_BS1 - reach_B11 + 0.5).floor().clamp(min=0)  # the first pixel whose centre is in reach
    pixels_BSK = first_BS1 + torch.arange(math.ceil(2 * float(reach_B11.max())))
    weights_BSK = (1 - (pixels_BSK + 0.5 - centre_BS1).abs() / reach_B11).clamp(min=0)
    last_B11 = length_B[:, None, None] - 1
    weights_BSK.masked_fill_(pixels_BSK > last_B11, 0)  # the crop ends here
    weights_BSK /= weights_BSK.sum(-1, keepdim=True)
    return Taps(start_B[:, None, None] + torch.minimum(pixels_BSK, last_B11).long(), weights_BSK.float())


def _weighted_rows(pixels_BCHW: Tensor, taps: Taps) -> Tensor:
    """Weighted sums of each image's rows: (B, C, S, W)."""
    batch, channels, height, width = pixels_BCHW.shape
    size, num_taps = taps.places_BSK.shape[1:]
    first_BC11 = torch.arange(0, batch * channels * height, height).view(batch, channels, 1, 1)
    places_RK = (first_BC11 + taps.places_BSK[:, None]).view(-1, num_taps)
    weights_RK = taps.weights_BSK[:, None].expand(batch, channels, size, num_taps).reshape(-1, num_taps)
    rows_RW = F.embedding_bag(places_RK, pixels_BCHW.reshape(-1, width), mode="sum", per_sample_weights=weights_RK)
    return rows_RW.view(batch, channels, size, width)


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
