"""The typed objects that cross the borders between rooms: a tile, a batch, what the routers decided.

Letters: B images of one modality, C channels, H height, W width in pixels, M modalities, E experts that one modality
may choose from (its specialised ones first, then the collaborative ones), T tokens of all modalities.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ringmoe.config import from_dict
from ringmoe.modality import Unit

Corner = tuple[float, float]
"""Longitude and latitude, degrees (WGS 84)."""


@dataclass(frozen=True, kw_only=True)
class Radiometry:
    """What stored numbers mean physically: ``scale * number + offset`` is the quantity.

    Attributes:
        quantity: What it is, in words ("surface reflectance").
        scale: Factor, for all bands.
        offset: Summand, for all bands.
    """

    quantity: str
    scale: float = 1.0
    offset: float = 0.0

    def __str__(self) -> str:
        """The rule in words, for messages."""
        if (self.scale, self.offset) == (1.0, 0.0):
            return self.quantity
        return f"{self.quantity} = {self.scale:g} x number {self.offset:+g}"


@dataclass(frozen=True, kw_only=True)
class TileRecord:
    """What is known of a tile beside its pixels; stored as JSON next to them.

    Attributes:
        modality: Key of its ``ModalitySpec``.
        bands: Bands of the modality in order (physical bands, not I/Q channels).
        absent: Those of ``bands`` that the scene does not have; their channels hold zeros and say so here.
        units: What the numbers are: one of the modality's units.
        dtype: Stored numpy type.
        sensor: Instrument, or what is known of it; tiles of one sensor share statistics.
        source: The scene's name (relative path), never an absolute path.
        row: First row of the tile in the scene, pixels.
        col: First column of the tile in the scene, pixels.
        size: Height and width of the (square) tile, pixels.
        crs: Coordinate reference system as WKT or an authority code; None where the scene has none.
        transform: Affine transform of the tile, six numbers (a, b, c, d, e, f); None where the scene has none.
        gsd: Ground sampling distance in metres; None where it is not known.
        acquired: Acquisition time, ISO 8601; None where it is not known.
        nodata: Value that marks pixels without data; the loader replaces them by the mean. None where there is none.
        valid: Share of the tile's pixels that hold data.
        synthetic: The pixels were drawn, not observed.
        radiometry: How the numbers become a physical quantity; None where the scene does not say it.
        corners: Outer corners of the tile, clockwise from its first row and column, for scenes that are tied to the
            ground by control points instead of a transform; None for others.
    """

    modality: str
    bands: tuple[str, ...]
    absent: tuple[str, ...] = ()
    units: Unit
    dtype: str
    sensor: str
    source: str
    row: int
    col: int
    size: int
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None
    gsd: float | None = None
    acquired: str | None = None
    nodata: float | None = None
    valid: float = 1.0
    synthetic: bool = False
    radiometry: Radiometry | None = None
    corners: tuple[Corner, Corner, Corner, Corner] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields; a no-data value that JSON cannot hold becomes text ("nan")."""
        values = asdict(self)
        if self.nodata is not None and not math.isfinite(self.nodata):
            values["nodata"] = str(self.nodata)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TileRecord":
        """Rebuilds a record from plain values.

        Raises:
            ConfigError: Unknown or missing field, or a value of the wrong type.
        """
        return from_dict(cls, values, where="tile record")


@dataclass(frozen=True)
class Tile:
    """A square cut from a scene.

    Attributes:
        pixels_CHW: Stored values in the modality's channel order; complex bands as I, Q channel pairs.
        record: What is known of it.
    """

    pixels_CHW: np.ndarray[Any, np.dtype[Any]]
    record: TileRecord


class BadTile(NamedTuple):
    """A tile that could not be read where its turn had come.

    Attributes:
        modality: Key of its modality.
        name: Shard and member.
        reason: What is wrong with it.
    """

    modality: str
    name: str
    reason: str


@dataclass(frozen=True)
class ModalityImages:
    """The images of one modality in a micro-batch, as the encoder sees them before masking.

    Attributes:
        pixels_BCHW: (B, C, H, W) float32, normalised; absent channels are zero.
        present_BC: (B, C) bool, False where the scene declared the channel absent.
        keys_B: (B,) int64, one random key for each image and epoch (see ``ringmoe.counter``): masks and gate noise.
        sample_ids: Name of each image: shard and member. May be made up only when one is asked for.
        bad: Tiles that could not be read. In training others were read in their place, elsewhere they are left out.
    """

    pixels_BCHW: Tensor
    present_BC: Tensor
    keys_B: Tensor
    sample_ids: Sequence[str]
    bad: tuple[BadTile, ...] = ()

    def to(self, device: torch.device) -> "ModalityImages":
        """The same images on another device."""
        return replace(
            self,
            pixels_BCHW=self.pixels_BCHW.to(device, non_blocking=True),
            present_BC=self.present_BC.to(device, non_blocking=True),
            keys_B=self.keys_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank: a fixed number of images of each modality, in the model's order of modalities."""

    images: Mapping[str, ModalityImages]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch({key: images.to(device) for key, images in self.images.items()})

    @property
    def num_images(self) -> int:
        """Images of all modalities together."""
        return sum(len(images.sample_ids) for images in self.images.values())


class Routing(NamedTuple):
    """What the two routers of one RMoE layer decided, summed over tokens: all that balance and pictures need.

    A row of modality m holds its own specialised experts first (N_S), then the collaborative ones (N_C).

    Attributes:
        counts_ME: (M, E) float32, how many of modality m's tokens selected expert e (no gradient).
        probs_ME: (M, E) float32, sum over modality m's tokens of the full softmax H_e (Eq. 14; carries the gradient).
        tokens_M: (M,) float32, tokens of each modality (no gradient).
    """

    counts_ME: Tensor
    probs_ME: Tensor
    tokens_M: Tensor
