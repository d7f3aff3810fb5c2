"""One synthetic landscape: what lies where, before any sensor looks at it, and the same place a year later."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ringmoe.raster.synth import buildings
from ringmoe.raster.synth.boxes import Box, place
from ringmoe.raster.synth.fields import Array, dilate, fractal, generator, pixel_centres
from ringmoe.raster.synth.roads import Road, Settlement, main_roads, road_surface, settle, streets
from ringmoe.raster.synth.terrain import Parcels, Terrain, Trees, parcels, terrain, trees
from ringmoe.raster.synth.traffic import Vehicle, traffic

# H rows, W columns, T frames; lengths in pixels, and one pixel is one metre

NUM_FRAMES = 8
FRAME_SECONDS = 0.25
TIMES_T = np.arange(NUM_FRAMES) * FRAME_SECONDS


@dataclass(frozen=True)
class Landscape:
    """Everything that the sensors see, as shapes and fields.

    Attributes:
        place: Seed, scene and size: the key of all that stays the same from date to date.
        date: The key of all that does not.
        terrain: Hills and water.
        parcels: The farmland.
        wood_HW: Ground under forest.
        cleared_HW: Former forest, felled.
        urban_HW: Ground of towns, between the houses.
        trees: Every tree.
        towns: Centres and street grids.
        roads: Main roads first, then streets.
        road_HW: Their surface.
        dashes_HW: The line in the middle of the main roads.
        yard_HW: Paved ground round halls.
        buildings: Boxes of class building.
        ships: Boxes of class ship.
        vehicles: What drives on the roads.
    """

    place: tuple[int, int, int]
    date: str
    terrain: Terrain
    parcels: Parcels
    wood_HW: Array
    cleared_HW: Array
    urban_HW: Array
    trees: Trees
    towns: tuple[Settlement, ...]
    roads: tuple[Road, ...]
    road_HW: Array
    dashes_HW: Array
    yard_HW: Array
    buildings: tuple[Box, ...]
    ships: tuple[Box, ...]
    vehicles: tuple[Vehicle, ...]

    @property
    def size(self) -> int:
        """Height and width, pixels."""
        return self.place[2]

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers of this date."""
        return generator(*self.place, self.date, purpose)

    def vehicle_boxes(self, seconds: float = 0.0) -> tuple[Box, ...]:
        """The vehicles that are on their roads, wholly inside the raster, after so many seconds."""
        boxes = (vehicle.at(self.roads, seconds) for vehicle in self.vehicles)
        return tuple(box for box in boxes if box is not None and box.inside(self.size))


def build(seed: int, scene: int, size: int) -> Landscape:
    """Draws the landscape of a scene: a pure function of its arguments."""
    where = (seed, scene, size)
    land = terrain(generator(*where, "terrain"), size)
    towns = settle(generator(*where, "towns"), land.elevation_HW, land.water_HW, 1 if size < 512 else 2)
    roads = main_roads(generator(*where, "roads"), land.elevation_HW, land.water_HW, towns)
    roads += tuple(chain.from_iterable(streets(town, land.water_HW) for town in towns))
    road_HW, dashes_HW = road_surface(roads, size)
    farmland = parcels(generator(*where, "parcels"), size)
    urban_HW = _urban(generator(*where, "urban"), towns, size) & ~land.water_HW
    wood_HW = _wood(generator(*where, "wood"), farmland, size) & ~urban_HW & ~land.water_HW
    free_HW = ~(dilate(land.water_HW, 6) | dilate(road_HW, 2))
    rng = generator(*where, "buildings")
    taken_HW = ~free_HW | wood_HW
    halls = place(buildings.halls(rng, roads, _per_area(14, size, least=3)), taken_HW, 5.0)
    yard_HW = _yards(halls, size) & free_HW
    farms = buildings.farms(rng, roads, _per_area(7, size, least=1))
    houses = chain.from_iterable(buildings.houses(rng, town) for town in towns)
    built = halls + place(chain(farms, houses), taken_HW, 1.5)
    return Landscape(
        place=where,
        date="first",
        terrain=land,
        parcels=farmland,
        wood_HW=wood_HW,
        cleared_HW=np.zeros_like(wood_HW),
        urban_HW=urban_HW,
        trees=_trees(generator(*where, "trees"), land, farmland, wood_HW, urban_HW),
        towns=towns,
        roads=roads,
        road_HW=road_HW,
        dashes_HW=dashes_HW,
        yard_HW=yard_HW,
        buildings=built,
        ships=_ships(generator(*where, "ships"), land, road_HW),
        vehicles=traffic(generator(*where, "traffic"), roads, TIMES_T, _per_area(70, size, least=12)),
    )


def a_year_later(first: Landscape) -> Landscape:
    """The same place with buildings gone and new, wood felled, fields changed; other ships and vehicles."""
    later = replace(first, date="later")
    rng = later.generator("buildings")
    kept = tuple(box for box in first.buildings if rng.random() > 0.1)
    taken_HW = first.terrain.water_HW | dilate(first.road_HW, 2) | first.wood_HW
    for box in first.buildings:
        where, near = box.footprint(first.size, 1.5)
        taken_HW[where] |= near
    fringe = [replace(town, radius=1.3 * town.radius) for town in first.towns]
    candidates = [box for town in fringe for box in buildings.houses(rng, town)]
    new = place((candidates[i] for i in rng.permutation(len(candidates))), taken_HW, 1.5)
    return replace(
        later,
        parcels=_next_crop(later.generator("parcels"), first.parcels),
        cleared_HW=_felled(later.generator("wood"), first.wood_HW),
        buildings=kept + new[: max(4, len(first.buildings) // 8)],
        ships=_ships(later.generator("ships"), first.terrain, first.road_HW),
        vehicles=traffic(later.generator("traffic"), first.roads, TIMES_T[:1], _per_area(70, first.size, least=12)),
    )


def _per_area(number: int, size: int, *, least: int) -> int:
    """How many of a thing a scene of this size has, when one of 768 pixels has ``number``."""
    return max(least, round(number * (size / 768) ** 2))


def _urban(rng: np.random.Generator, towns: tuple[Settlement, ...], size: int) -> Array:
    """The ground of the towns: discs with frayed edges."""
    x, y = pixel_centres(size)
    frayed = 1.0 + 0.12 * fractal(rng, size, 1.5, largest=80.0)
    urban_HW: Array = np.logical_or.reduce([np.hypot(x - t.x, y - t.y) < (t.radius + 8.0) * frayed for t in towns])
    return urban_HW


def _wood(rng: np.random.Generator, farmland: Parcels, size: int) -> Array:
    """Forest: partly along the borders of parcels, partly with edges of its own."""
    wild_HW = fractal(rng, size, 1.7, largest=0.6 * size)
    number = len(farmland.growth_P)
    sums = np.bincount(farmland.ids_HW.ravel(), wild_HW.ravel(), number)
    mean_P = sums / np.bincount(farmland.ids_HW.ravel(), minlength=number)
    score_HW: Array = 0.35 * wild_HW + 0.65 * mean_P[farmland.ids_HW]
    wood_HW: Array = score_HW > np.quantile(score_HW, rng.uniform(0.68, 0.82))
    return wood_HW


def _yards(halls: tuple[Box, ...], size: int) -> Array:
    """Paved ground round the halls."""
    yard_HW = np.zeros((size, size), dtype=bool)
    for box in halls:
        where, near = box.footprint(size, 9.0)
        yard_HW[where] |= near
    return yard_HW


def _trees(rng: np.random.Generator, land: Terrain, farmland: Parcels, wood_HW: Array, urban_HW: Array) -> Trees:
    """Forest, hedges, trees on the banks, in gardens and alone in the fields."""
    edge_HW = dilate(farmland.edges, 1) & farmland.hedged_P[farmland.ids_HW]
    density_HW = np.full(wood_HW.shape, 0.004)
    density_HW[dilate(land.water_HW, 9)] = 0.22
    density_HW[edge_HW] = 0.7
    density_HW[urban_HW] = 0.1
    density_HW[wood_HW] = 0.985
    return trees(rng, density_HW)


def _ships(rng: np.random.Generator, land: Terrain, road_HW: Array) -> tuple[Box, ...]:
    """Ships with open water all round; no more than the water carries."""
    taken_HW = ~land.water_HW | dilate(road_HW, 2)
    most = max(3, round(land.water_HW.sum() / 3500))
    return place(buildings.ships(rng, land.water_HW, land.river_N2, 60 * most), taken_HW, 2.5)[:most]


def _next_crop(rng: np.random.Generator, farmland: Parcels) -> Parcels:
    """Some fields ploughed, some ploughed ones grown."""
    number = len(farmland.growth_P)
    changed_P = (rng.random(number) < 0.16) & ~farmland.grass_P
    other_P = np.where(farmland.growth_P > 0.3, rng.uniform(0.0, 0.12, number), rng.uniform(0.6, 0.97, number))
    return replace(farmland, growth_P=np.where(changed_P, other_P, farmland.growth_P))


def _felled(rng: np.random.Generator, wood_HW: Array) -> Array:
    """A clearing or two in the forest."""
    rows, cols = np.nonzero(wood_HW)
    size = len(wood_HW)
    x, y = pixel_centres(size)
    frayed = 1.0 + 0.2 * fractal(rng, size, 1.5, largest=60.0)
    cleared_HW = np.zeros_like(wood_HW)
    for at in rng.permutation(len(rows))[:2]:
        radius = rng.uniform(0.03, 0.07) * size
        cleared_HW |= np.hypot(x - cols[at], y - rows[at]) < radius * frayed
    return cleared_HW & wood_HW
