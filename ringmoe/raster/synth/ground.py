"""The landscape as rasters: class, height, albedo and what the radar needs, pixel by pixel and without noise."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from ringmoe.raster.synth.boxes import Box, Window
from ringmoe.raster.synth.covers import (
    ASPHALT,
    BROADLEAF,
    CONIFER,
    CROPS,
    GRASS,
    HULLS,
    MARKING,
    PAINTS,
    ROOFS,
    SOIL,
    WATER_CLEAR,
    WATER_TURBID,
    Cover,
    Spectrum,
)
from ringmoe.raster.synth.fields import Array, blur, dilate, fractal, generator, pixel_centres
from ringmoe.raster.synth.landscape import Landscape

# H rows, W columns, C the four bands blue, green, red, near infrared; one pixel is one metre


@dataclass(frozen=True)
class Ground:
    """What a sensor sees of each pixel.

    Attributes:
        cover_HW: Class, uint8.
        elevation_HW: Height of the bare ground, metres.
        height_HW: Height of buildings and trees above it, metres; 0 elsewhere.
        albedo_CHW: Reflectance in the four bands.
        growth_HW: Share of the ground that plants cover, where there are fields.
        echo_HW: Radar backscatter against the mean of its cover, linear.
        facing_HW: Direction of the walls of a building, radians; NaN where there is none.
    """

    cover_HW: Array
    elevation_HW: Array
    height_HW: Array
    albedo_CHW: Array
    growth_HW: Array
    echo_HW: Array
    facing_HW: Array

    def crop(self, row: int, col: int, size: int) -> "Ground":
        """A square of it."""
        window = (..., slice(row, row + size), slice(col, col + size))
        return Ground(**{field.name: getattr(self, field.name)[window] for field in fields(self)})

    def fill(self, where_HW: Array, cover: Cover, albedo_CHW: Array) -> None:
        """Gives pixels a class and its albedo, flat and with the class's mean backscatter."""
        self.cover_HW[where_HW] = cover
        self.albedo_CHW[:, where_HW] = np.broadcast_to(albedo_CHW, self.albedo_CHW.shape)[:, where_HW]
        self.height_HW[where_HW] = 0.0
        self.echo_HW[where_HW] = 1.0


@dataclass(frozen=True)
class _Texture:
    """Noise fields that belong to the place, so that both dates share them: coarse, middle and fine."""

    coarse_HW: Array
    patchy_HW: Array
    fine_HW: Array


def paint(landscape: Landscape) -> Ground:
    """The landscape without its vehicles, from the ground up."""
    size = landscape.size
    rng = generator(*landscape.place, "texture")
    texture = _Texture(
        fractal(rng, size, 1.4, largest=220.0), fractal(rng, size, 1.3, largest=45.0), fractal(rng, size, 0.5)
    )
    ground = Ground(
        cover_HW=np.zeros((size, size), dtype=np.uint8),
        elevation_HW=landscape.terrain.elevation_HW.astype(np.float32),
        height_HW=np.zeros((size, size), dtype=np.float32),
        albedo_CHW=np.zeros((len(Spectrum._fields), size, size), dtype=np.float32),
        growth_HW=np.zeros((size, size), dtype=np.float32),
        echo_HW=np.ones((size, size), dtype=np.float32),
        facing_HW=np.full((size, size), np.nan, dtype=np.float32),
    )
    _fields(ground, landscape, texture)
    _green(ground, landscape, texture)
    _water(ground, landscape, texture)
    _sealed(ground, landscape, texture)
    _trees(ground, landscape)
    for box in landscape.buildings:
        _building(ground, box, texture)
    for box in landscape.ships:
        _ship(ground, box)
    return ground


def with_vehicles(ground: Ground, boxes: Iterable[Box]) -> Ground:
    """A copy of the ground with vehicles on it."""
    ground = replace(
        ground,
        cover_HW=ground.cover_HW.copy(),
        albedo_CHW=ground.albedo_CHW.copy(),
        height_HW=ground.height_HW.copy(),
        echo_HW=ground.echo_HW.copy(),
    )
    for box in boxes:
        where, painted_HW = box.footprint(len(ground.cover_HW))
        _view(ground, where).fill(painted_HW, Cover.VEHICLE, box.tone * _spectrum(PAINTS[box.style]))
    return ground


def _spectrum(spectrum: Spectrum) -> Array:
    """(C, 1, 1) to be broadcast over pixels."""
    return np.array(spectrum, dtype=np.float32)[:, None, None]


def _view(ground: Ground, where: tuple[slice, slice]) -> Ground:
    """A window of the ground that shares its memory."""
    return Ground(**{field.name: getattr(ground, field.name)[(..., *where)] for field in fields(ground)})


def _fields(ground: Ground, landscape: Landscape, texture: _Texture) -> None:
    """Crops in rows, ploughed soil and meadows, parcel by parcel, with grass along the edges."""
    farmland = landscape.parcels
    ids_HW = farmland.ids_HW
    x, y = pixel_centres(landscape.size)
    angle_HW = farmland.angle_P[ids_HW].astype(np.float32)
    across_HW = y * np.cos(angle_HW) - x * np.sin(angle_HW)
    rows_HW = np.cos(2 * np.pi * across_HW / farmland.period_P[ids_HW])
    tramlines_HW = across_HW % 23.0 < 1.8
    growth_HW = farmland.growth_P[ids_HW] * (1.0 + 0.13 * texture.patchy_HW + 0.05 * texture.fine_HW + 0.09 * rows_HW)
    ground.growth_HW[:] = np.clip(growth_HW - 0.3 * tramlines_HW, 0.0, 1.0)
    tone_HW = farmland.tone_P[ids_HW] * (1 + 0.1 * texture.coarse_HW + 0.05 * texture.fine_HW + 0.06 * rows_HW)
    soil_CHW = _spectrum(SOIL) * tone_HW.astype(np.float32)
    crop_CHW: Array = np.moveaxis(np.array(CROPS, dtype=np.float32)[farmland.crop_P][ids_HW], -1, 0)
    crop_CHW = crop_CHW * (1.0 + 0.06 * texture.patchy_HW + 0.04 * texture.fine_HW)
    albedo_CHW = soil_CHW + ground.growth_HW * (crop_CHW - soil_CHW)
    grown_HW = farmland.growth_P[ids_HW] > 0.3
    ground.fill(grown_HW, Cover.CROP, albedo_CHW)
    ground.fill(~grown_HW, Cover.SOIL, albedo_CHW)
    ground.echo_HW[:] = farmland.echo_P[ids_HW] * 10.0 ** (0.05 * texture.patchy_HW)
    grass_HW = farmland.grass_P[ids_HW] | dilate(farmland.edges, 1)
    ground.fill(grass_HW, Cover.GRASS, _grass(texture, 0.9) * (0.85 + 0.2 * farmland.tone_P[ids_HW]))


def _grass(texture: _Texture, density: float) -> Array:
    """Grass with the soil shining through in patches."""
    share_HW = np.clip(density + 0.12 * texture.patchy_HW, 0.2, 1.0)
    tone_HW = 1.0 + 0.07 * texture.fine_HW + 0.06 * texture.coarse_HW
    mixed: Array = (_spectrum(SOIL) + share_HW * (_spectrum(GRASS) - _spectrum(SOIL))) * tone_HW
    return mixed


def _green(ground: Ground, landscape: Landscape, texture: _Texture) -> None:
    """The banks, the gardens of the towns, the floor of the forest, and clearings."""
    ground.fill(dilate(landscape.terrain.water_HW, 5), Cover.GRASS, 0.85 * _grass(texture, 0.85))
    ground.fill(landscape.urban_HW, Cover.GRASS, _grass(texture, 0.68))
    ground.fill(landscape.wood_HW, Cover.TREES, 0.5 * _grass(texture, 0.95))
    stumps_HW = 1.0 + 0.12 * texture.fine_HW + 0.1 * texture.patchy_HW
    ground.fill(landscape.cleared_HW, Cover.SOIL, 0.62 * _spectrum(SOIL) * stumps_HW)


def _water(ground: Ground, landscape: Landscape, texture: _Texture) -> None:
    """Water, more turbid near its banks."""
    water_HW = landscape.terrain.water_HW
    turbid_HW = np.clip(0.35 + 0.2 * texture.coarse_HW + 1.2 * blur(~water_HW, 5.0), 0.0, 1.0)
    albedo_CHW = _spectrum(WATER_CLEAR) + turbid_HW * (_spectrum(WATER_TURBID) - _spectrum(WATER_CLEAR))
    ground.fill(water_HW, Cover.WATER, albedo_CHW * (1.0 + 0.03 * texture.fine_HW))
    ground.echo_HW[water_HW] = 10.0 ** (0.08 * texture.coarse_HW[water_HW])


def _sealed(ground: Ground, landscape: Landscape, texture: _Texture) -> None:
    """Yards, roads and the bridges that carry them over water."""
    tone_HW = 1.0 + 0.06 * texture.fine_HW + 0.1 * texture.patchy_HW
    ground.fill(landscape.yard_HW, Cover.ROAD, 1.7 * _spectrum(ASPHALT) * tone_HW)
    ground.fill(landscape.road_HW, Cover.ROAD, 1.25 * _spectrum(ASPHALT) * tone_HW)
    ground.albedo_CHW[:, landscape.dashes_HW] = _spectrum(MARKING)[..., 0]


def _trees(ground: Ground, landscape: Landscape) -> None:
    """Crowns over everything that lets them grow."""
    trees = landscape.trees
    canopy_HW = np.where(landscape.wood_HW, np.maximum(trees.height_HW, 2.0), trees.height_HW)
    closed_HW = np.isin(ground.cover_HW, (Cover.WATER, Cover.ROAD)) | landscape.cleared_HW
    crown_HW = (trees.height_HW > 0) & ~closed_HW
    leaves_CHW = _spectrum(BROADLEAF) + trees.conifer_HW * (_spectrum(CONIFER) - _spectrum(BROADLEAF))
    ground.fill(crown_HW, Cover.TREES, leaves_CHW * trees.tone_HW)
    tree_HW = ground.cover_HW == Cover.TREES
    ground.height_HW[tree_HW] = canopy_HW[tree_HW]


def _building(ground: Ground, box: Box, texture: _Texture) -> None:
    """A roof, flat or with a ridge along its length."""
    window = box.window(len(ground.cover_HW))
    where, roof_HW = box.footprint(len(ground.cover_HW))
    part = _view(ground, where)
    tone_HW = box.tone * (1.0 + 0.05 * texture.fine_HW[where])
    part.fill(roof_HW, Cover.BUILDING, _spectrum(ROOFS[box.style]) * tone_HW)
    slope = 0.0 if box.flat else 0.4
    height_HW = box.height * (1.0 - slope * np.abs(window.v_HW) / (box.width / 2))
    part.height_HW[roof_HW] = height_HW[roof_HW]
    part.facing_HW[roof_HW] = box.angle
    part.echo_HW[roof_HW] = 10.0 ** (0.15 * texture.fine_HW[where][roof_HW])


def _ship(ground: Ground, box: Box) -> None:
    """A hull with a pointed bow, hatches along the deck and a white bridge near the stern."""
    window = box.window(len(ground.cover_HW))
    part = _view(ground, window.where)
    along_HW, aside_HW = window.u_HW / box.length, np.abs(window.v_HW) / (box.width / 2)
    taper_HW = 1.0 - np.clip((along_HW - 0.28) / 0.22, 0.0, 1.0) ** 2
    hull_HW = (np.abs(along_HW) <= 0.5) & (aside_HW <= taper_HW)
    hatches_HW = 1.0 + 0.25 * np.cos(window.u_HW * np.pi / 3) * (aside_HW < 0.6)
    albedo_CHW = box.tone * _spectrum(HULLS[box.style]) * hatches_HW
    albedo_CHW = np.where(np.abs(along_HW + 0.36) < 0.07, _spectrum(ROOFS[4]), albedo_CHW)
    part.fill(hull_HW, Cover.SHIP, albedo_CHW)
    # a few strong corners carry most of a ship's echo
    part.echo_HW[hull_HW] = _corners(window, box)[hull_HW]


def _corners(window: Window, box: Box) -> Array:
    """Bright points at fixed places of a hull, of mean about one."""
    pattern_HW = np.cos(window.u_HW * 1.7 + box.x) * np.cos(window.v_HW * 1.3 + box.y)
    corners_HW: Array = 0.3 + 4.5 * np.clip(pattern_HW, 0.0, 1.0) ** 3
    return corners_HW
