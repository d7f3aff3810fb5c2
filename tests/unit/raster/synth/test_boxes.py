"""Boxes in pixels and on the globe agree with each other and never overlap."""

from itertools import combinations

import numpy as np
import pytest
from rasterio.warp import transform as project

from ringmoe.raster.synth.boxes import Box, feature_collection, place
from ringmoe.raster.synth.fields import generator


def _random_boxes(number, size=100):
    rng = generator("boxes")
    for _ in range(number):
        x, y = rng.uniform(0, size, 2)
        yield Box("building", x, y, rng.uniform(8, 25), rng.uniform(4, 8), rng.uniform(0, 2 * np.pi))


def _inside_polygon(corners_42, x, y):
    """All cross products of edges and a point have one sign: another definition than that of the footprint."""
    edges = np.roll(corners_42, -1, axis=0) - corners_42
    sides = [e[0] * (y - c[1]) - e[1] * (x - c[0]) >= -1e-9 for e, c in zip(edges, corners_42, strict=True)]
    return np.logical_and.reduce(sides)


def test_footprint_holds_the_pixels_inside_the_corners():
    for box in _random_boxes(8):
        painted_HW = np.zeros((100, 100), dtype=bool)
        where, near = box.footprint(100)
        painted_HW[where] = near
        rows, cols = np.indices((100, 100)) + 0.5
        expected_HW = _inside_polygon(box.corners_42, cols, rows)
        assert (painted_HW == expected_HW).all()


def test_upright_box_touches_all_corners():
    box = Box("ship", 50.0, 40.0, 20.0, 6.0, np.deg2rad(30))
    left, top, width, height = box.upright
    assert width == pytest.approx(20 * np.cos(np.pi / 6) + 6 * np.sin(np.pi / 6))
    assert height == pytest.approx(20 * np.sin(np.pi / 6) + 6 * np.cos(np.pi / 6))
    assert (left + width / 2, top + height / 2) == pytest.approx((50, 40))
    assert box.inside(100)
    assert not box.inside(50 + 9)


def test_placed_boxes_keep_their_distance_and_stay_inside():
    taken_HW = np.zeros((100, 100), dtype=bool)
    taken_HW[:, :30] = True
    placed = place(_random_boxes(300), taken_HW, 2.0)
    assert len(placed) > 10
    painted = []
    for box in placed:
        assert box.inside(100)
        mask_HW = np.zeros((100, 100), dtype=bool)
        where, near = box.footprint(100)
        mask_HW[where] = near
        assert not mask_HW[:, :30].any()
        painted.append(mask_HW)
    assert not any((one & two).any() for one, two in combinations(painted, 2))


def test_geojson_outlines_are_the_boxes_on_the_globe():
    transform = (1.0, 0.0, 500_000.0, 0.0, -1.0, 5_200_000.0)
    boxes = [Box("building", 30.0, 20.0, 12.0, 8.0, 0.4, height=7.5), Box("ship", 60.0, 70.0, 30.0, 7.0, 2.0)]
    collection = feature_collection(boxes, crs="EPSG:32632", transform=transform, scene="s", acquired="2024-06-18")
    assert collection["type"] == "FeatureCollection"
    assert collection["synthetic"] is True
    for box, feature in zip(boxes, collection["features"], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        lon, lat = np.array(ring).T
        assert np.sum(lon[:-1] * lat[1:] - lon[1:] * lat[:-1]) > 0, "RFC 7946: exterior rings are counter-clockwise"
        x, y = (np.array(v) for v in project("EPSG:4326", "EPSG:32632", lon[:-1], lat[:-1]))
        corners_42 = np.stack((x - 500_000.0, 5_200_000.0 - y), axis=-1)
        assert corners_42[::-1] == pytest.approx(box.corners_42, abs=0.01)
        assert feature["properties"]["rotated_box_px"] == pytest.approx(box.corners_42, abs=0.006)
        assert feature["properties"]["class"] == box.kind
    assert collection["features"][0]["properties"]["height_m"] == 7.5
