"""Hills, a river and lakes in their valleys, the parcels of the farmland, and trees one by one."""

from dataclasses import dataclass

import numpy as np

from ringmoe.raster.synth.covers import CROPS
from ringmoe.raster.synth.fields import Array, blur, fractal, pixel_centres
from ringmoe.raster.synth.paths import CELL, cheapest, line_field, smooth

# H rows, W columns, N points of a line as (x, y), P parcels; lengths in pixels, and one pixel is one metre

_RELIEF = 7.0  # standard deviation of the hills, metres
_VALLEY_DEPTH = 9.0
_VALLEY_WIDTH = 70.0


@dataclass(frozen=True)
class Terrain:
    """The bare land.

    Attributes:
        elevation_HW: Metres above the river.
        water_HW: Lakes and the river.
        river_N2: Middle line of the river.
    """

    elevation_HW: Array
    water_HW: Array
    river_N2: Array


def terrain(rng: np.random.Generator, size: int) -> Terrain:
    """Fractal hills; a river on the lowest way across; lakes where the land is lowest."""
    hills_HW = fractal(rng, size, 2.1)
    cells = size // CELL
    coarse_HW = blur(hills_HW, CELL / 2)[CELL // 2 : cells * CELL : CELL, CELL // 2 : cells * CELL : CELL]
    start = (int(coarse_HW[:, 0].argmin()), 0)
    end = (int(coarse_HW[:, -1].argmin()), cells - 1)
    path = [(start[0], -2), *cheapest(np.exp(1.8 * coarse_HW), start, end), (end[0], cells + 1)]
    river_N2 = smooth((np.array(path, dtype=float)[:, ::-1] + 0.5) * CELL, 13, 10.0)
    if rng.random() < 0.5:
        hills_HW, river_N2 = hills_HW.T.copy(), river_N2[:, ::-1].copy()
    distance_HW = line_field(river_N2, size, 3.0 * _VALLEY_WIDTH).distance_HW
    valley_HW = np.exp(-0.5 * (distance_HW / _VALLEY_WIDTH) ** 2)
    elevation_HW = _RELIEF * hills_HW - _VALLEY_DEPTH * valley_HW
    half_width = rng.uniform(13.0, 24.0) * np.clip(size / 512, 0.6, 1.0)
    banks_HW = half_width * (1.0 + 0.22 * fractal(rng, size, 1.6, largest=120.0))
    water_HW = distance_HW < banks_HW
    basins_HW = blur(elevation_HW, 3.0) + 0.3 * fractal(rng, size, 1.5, largest=60.0)
    water_HW |= basins_HW < np.quantile(basins_HW, rng.uniform(0.02, 0.07))
    water_HW = blur(water_HW, 2.0) > 0.5
    return Terrain(elevation_HW - elevation_HW[water_HW].min(), water_HW, river_N2)


@dataclass(frozen=True)
class Parcels:
    """The farmland, cut into polygons.

    Attributes:
        ids_HW: Parcel of each pixel.
        growth_P: Share of the ground that its plants cover, 0 (ploughed) to 1.
        crop_P: What grows: a row of the table of crops.
        grass_P: A meadow, not a field.
        angle_P: Direction of its rows, radians.
        period_P: Distance of its rows, pixels.
        tone_P: Brightness of its soil against the mean.
        echo_P: Radar backscatter against the mean of its cover, linear.
        hedged_P: Lined by trees.
    """

    ids_HW: Array
    growth_P: Array
    crop_P: Array
    grass_P: Array
    angle_P: Array
    period_P: Array
    tone_P: Array
    echo_P: Array
    hedged_P: Array

    @property
    def edges(self) -> Array:
        """(H, W) bool, pixels whose right or lower neighbour belongs to another parcel."""
        edge_HW = np.zeros(self.ids_HW.shape, dtype=bool)
        edge_HW[:, :-1] |= self.ids_HW[:, :-1] != self.ids_HW[:, 1:]
        edge_HW[:-1] |= self.ids_HW[:-1] != self.ids_HW[1:]
        return edge_HW


def parcels(rng: np.random.Generator, size: int) -> Parcels:
    """Cuts the land into convex polygons and decides what each grows."""
    ids_HW, angles = _cut(rng, size)
    number = len(angles)
    ploughed_P = rng.random(number) < 0.24
    return Parcels(
        ids_HW=ids_HW,
        growth_P=np.where(ploughed_P, rng.uniform(0.0, 0.12, number), rng.uniform(0.55, 0.97, number)),
        crop_P=rng.choice(len(CROPS), number, p=(0.34, 0.24, 0.09, 0.15, 0.18)),
        grass_P=rng.random(number) < 0.18,
        angle_P=np.array(angles),
        period_P=rng.uniform(3.2, 7.0, number),
        tone_P=rng.uniform(0.75, 1.3, number),
        echo_P=10.0 ** rng.uniform(-0.17, 0.17, number),
        hedged_P=rng.random(number) < 0.3,
    )


def _cut(rng: np.random.Generator, size: int) -> tuple[Array, list[float]]:
    """Halves the land again and again across its longer side, until the pieces have the size of fields.

    Returns:
        The piece of each pixel (H, W), and the direction of each piece's longer side.
    """
    columns, rows = pixel_centres(size)
    xy = np.stack(np.broadcast_arrays(columns, rows), axis=-1).reshape(-1, 2)
    ids = np.zeros(size * size, dtype=np.int32)
    angles: list[float] = []
    tilt = rng.uniform(0, np.pi)
    pending = [np.arange(size * size)]
    while pending:
        members = pending.pop()
        offsets = xy[members] - xy[members].mean(axis=0)
        xx, yy, cross = (offsets[:, 0] ** 2).mean(), (offsets[:, 1] ** 2).mean(), offsets.prod(axis=1).mean()
        # the first cut, through a square, has no longer side: the scene's own direction decides
        longer = 0.5 * np.arctan2(2 * cross, xx - yy) if len(members) < size * size else tilt
        if len(members) < rng.uniform(3000, 14000):
            ids[members] = len(angles)
            angles.append(float(longer))
            continue
        angle = longer + rng.normal(0.0, 0.06)
        along = offsets @ np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
        first = along < np.quantile(along, rng.uniform(0.38, 0.62))
        pending += [members[first], members[~first]]
    return ids.reshape(size, size), angles


@dataclass(frozen=True)
class Trees:
    """Trees seen from above.

    Attributes:
        height_HW: Height of the canopy in metres, 0 between trees.
        conifer_HW: Share of needle-leaved wood in the colour, 0 to 1.
        tone_HW: Brightness of each crown against the mean.
    """

    height_HW: Array
    conifer_HW: Array
    tone_HW: Array


def trees(rng: np.random.Generator, density_HW: Array) -> Trees:
    """Plants a tree with the probability given at each point of a jittered lattice; each crown is a half-ellipsoid."""
    size, spacing = len(density_HW), 5.5
    cells = int(np.ceil(size / spacing)) + 2
    # lattice cell (i, j) covers pixels (i - 1) * spacing onwards, so that crowns reach in over the border
    y, x = (np.indices((cells, cells)) - 1.0 + rng.uniform(0.1, 0.9, (2, cells, cells))) * spacing
    at = tuple(np.clip(v.astype(int), 0, size - 1) for v in (y, x))
    stand_HW = fractal(rng, size, 1.3, largest=150.0)
    height = np.clip(rng.normal(13.0, 3.0, (cells, cells)) + 2.5 * stand_HW[at], 4.0, 26.0)
    radius = np.clip(0.21 * height + rng.normal(1.1, 0.5, (cells, cells)), 1.6, 5.2)
    radius *= rng.random((cells, cells)) < density_HW[at]
    conifer = np.clip(0.5 + 1.1 * stand_HW[at] + rng.normal(0, 0.2, (cells, cells)), 0.0, 1.0)
    tone = np.clip(rng.normal(1.0, 0.14, (cells, cells)), 0.6, 1.5)
    columns, rows = pixel_centres(size)
    cell_rows, cell_cols = (np.floor(centres / spacing).astype(int) + 1 for centres in (rows, columns))
    height_HW, conifer_HW, tone_HW = np.zeros((3, size, size), dtype=np.float32)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            cell = (cell_rows + i, cell_cols + j)
            outside = ((rows - y[cell]) ** 2 + (columns - x[cell]) ** 2) / np.maximum(radius[cell], 1e-3) ** 2
            crown_HW = np.where(outside < 1.0, height[cell] * (0.5 + 0.5 * np.sqrt(np.clip(1 - outside, 0, 1))), 0.0)
            higher = crown_HW > height_HW
            for field_HW, value in ((height_HW, crown_HW), (conifer_HW, conifer[cell]), (tone_HW, tone[cell])):
                field_HW[higher] = value[higher]
    return Trees(height_HW, conifer_HW, tone_HW)
