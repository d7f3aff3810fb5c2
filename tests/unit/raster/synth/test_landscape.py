"""The landscape hangs together: water lies low, roads are one network, objects stand where they belong."""

from itertools import combinations

import numpy as np
import pytest

from ringmoe.raster.synth.covers import Cover
from ringmoe.raster.synth.fields import dilate, generator
from ringmoe.raster.synth.landscape import TIMES_T, a_year_later, build
from ringmoe.raster.synth.terrain import trees

SIZE = 320


def _components(mask_HW):
    """Number of connected pieces of a mask (4-neighbours), by flooding."""
    left_HW = mask_HW.copy()
    number = 0
    while left_HW.any():
        number += 1
        front = [tuple(np.argwhere(left_HW)[0])]
        left_HW[front[0]] = False
        while front:
            row, col = front.pop()
            for cell in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                if 0 <= cell[0] < len(mask_HW) and 0 <= cell[1] < len(mask_HW) and left_HW[cell]:
                    left_HW[cell] = False
                    front.append(cell)
    return number


def _mask(box):
    mask_HW = np.zeros((SIZE, SIZE), dtype=bool)
    where, near = box.footprint(SIZE)
    mask_HW[where] = near
    return mask_HW


def test_water_lies_low_and_the_river_crosses(landscape):
    land = landscape.terrain
    assert 0.03 < land.water_HW.mean() < 0.35
    assert np.median(land.elevation_HW[land.water_HW]) < np.quantile(land.elevation_HW, 0.25)
    down, across = (land.water_HW.any(axis=axis)[[0, -1]].all() for axis in (1, 0))
    assert down or across
    assert _components(land.water_HW) < 8


def test_roads_are_one_network_that_leaves_the_scene(landscape):
    assert _components(landscape.road_HW) == 1
    edge = (landscape.road_HW[0], landscape.road_HW[-1], landscape.road_HW[:, 0], landscape.road_HW[:, -1])
    assert sum(line.any() for line in edge) >= 3


def test_two_towns_are_joined_too():
    large = build(1, 0, 512)
    assert len(large.towns) == 2
    assert _components(large.road_HW) == 1


def test_parcels_are_polygons_of_field_size(landscape):
    ids_HW = landscape.parcels.ids_HW
    sizes = np.bincount(ids_HW.ravel())
    assert len(sizes) == len(landscape.parcels.growth_P)
    assert sizes.min() > 500
    assert sizes.max() < 14_000
    # convex pieces have short borders; ragged ones of this size would have far more edge pixels
    assert landscape.parcels.edges.sum() < 2.5 * np.sqrt(sizes).sum()
    assert {_components(ids_HW == i) for i in range(0, len(sizes), 3)} == {1}


def test_trees_grow_only_where_they_may():
    density_HW = np.zeros((120, 120))
    density_HW[:, 60:] = 0.95
    grown = trees(generator("trees"), density_HW)
    assert (grown.height_HW[:, :54] == 0).all()  # a crown reaches out five metres at most
    assert (grown.height_HW[:, 66:] > 0).mean() > 0.8
    assert 3.0 < grown.height_HW[grown.height_HW > 0].mean() < 20.0


def test_buildings_stand_free_of_roads_water_and_each_other(landscape):
    masks = [_mask(box) for box in landscape.buildings]
    assert len(masks) >= 5
    blocked_HW = landscape.road_HW | landscape.terrain.water_HW | landscape.wood_HW
    assert not any((mask_HW & blocked_HW).any() for mask_HW in masks)
    assert not any((one & two).any() for one, two in combinations(masks, 2))
    assert all(5.0 < box.height < 30.0 for box in landscape.buildings)


def test_ships_float(landscape):
    assert len(landscape.ships) >= 2
    dry_HW = ~landscape.terrain.water_HW | landscape.road_HW
    assert not any((_mask(box) & dry_HW).any() for box in landscape.ships)


def test_vehicles_drive_on_the_right_along_their_road(landscape):
    roads = landscape.roads
    boxes = [vehicle.at(roads, 0.0) for vehicle in landscape.vehicles]
    assert len(boxes) >= 12
    for vehicle, box in zip(landscape.vehicles, boxes, strict=True):
        later = vehicle.at(roads, 0.5)
        if later is not None:
            travelled = np.hypot(later.x - box.x, later.y - box.y)
            assert travelled == pytest.approx(0.5 * abs(vehicle.speed), rel=0.25)
        offsets = roads[vehicle.road].points_N2 - (box.x, box.y)
        right = np.array([-np.sin(box.angle), np.cos(box.angle)])
        nearest = offsets[np.hypot(*offsets.T).argmin()]
        assert nearest @ right < 0, "the middle line must be on the left"
    end = next(vehicle for vehicle in landscape.vehicles if vehicle.speed > 0)
    assert end.at(roads, 1e4) is None


def test_vehicles_never_touch(landscape):
    for seconds in TIMES_T:
        masks = [_mask(box) for box in landscape.vehicle_boxes(float(seconds))]
        assert not any((one & two).any() for one, two in combinations(masks, 2))


def test_the_same_key_gives_the_same_landscape(landscape):
    again = build(3, 0, SIZE)
    assert again.buildings == landscape.buildings
    assert (again.terrain.water_HW == landscape.terrain.water_HW).all()
    other = build(3, 1, SIZE)
    assert (other.terrain.water_HW != landscape.terrain.water_HW).mean() > 0.02


def test_a_year_later_some_of_everything_has_changed(landscape):
    later = a_year_later(landscape)
    before, after = set(landscape.buildings), set(later.buildings)
    assert before - after
    assert after - before
    assert len(before & after) > len(before) / 2
    assert not any((_mask(new) & _mask(old)).any() for new in after - before for old in before)
    assert (later.cleared_HW <= landscape.wood_HW).all()
    assert 0.001 < later.cleared_HW.mean() < 0.2
    assert (later.parcels.growth_P != landscape.parcels.growth_P).any()
    assert set(later.ships).isdisjoint(landscape.ships)
    assert (later.road_HW == landscape.road_HW).all()


def test_every_cover_occurs(ground):
    assert set(np.unique(ground.cover_HW)) == {int(cover) for cover in Cover}


def test_heights_are_those_of_buildings_and_trees(ground, landscape):
    tall_HW = np.isin(ground.cover_HW, (Cover.BUILDING, Cover.TREES))
    assert ((ground.height_HW > 0) == tall_HW).all()
    for box in landscape.buildings:
        assert ground.height_HW[_mask(box)].max() == pytest.approx(box.height, rel=0.15)
        assert ground.height_HW[_mask(box)].max() <= box.height + 1e-4


def test_boxes_lie_on_their_cover(ground, landscape):
    for box in landscape.buildings:
        assert (ground.cover_HW[_mask(box)] == Cover.BUILDING).all()
    for box in landscape.ships:
        hull_HW = ground.cover_HW[_mask(box)] == Cover.SHIP
        assert hull_HW.mean() > 0.75  # the bow is pointed
        assert np.isin(ground.cover_HW[dilate(_mask(box), 1)], (Cover.SHIP, Cover.WATER)).all()
    road_HW = dilate(landscape.road_HW, 1)
    for box in landscape.vehicle_boxes():
        assert (ground.cover_HW[_mask(box)] == Cover.VEHICLE).all()
        assert road_HW[_mask(box)].all()
    boxes = landscape.buildings + landscape.ships + landscape.vehicle_boxes()
    covered_HW = np.logical_or.reduce([_mask(box) for box in boxes])
    assert (covered_HW[ground.cover_HW >= Cover.BUILDING]).all(), "an object without a box"
