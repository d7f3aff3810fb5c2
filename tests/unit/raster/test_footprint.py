from dataclasses import replace

import pytest

from ringmoe.raster.footprint import footprint


@pytest.fixture
def scene(write_raster, noise, scene_of):
    return scene_of(write_raster("scene.tif", noise("uint8", 3, 100, 50), names=("R", "G", "B")))


def test_corners_come_from_the_reference_system(scene):
    placed = replace(scene, crs="EPSG:4326", transform=(0.1, 0.0, 10.0, 0.0, -0.1, 50.0), control=())
    assert footprint(placed) == ((10.0, 50.0), (15.0, 50.0), (15.0, 40.0), (10.0, 40.0))
    # the false easting of a zone of UTM is its middle meridian, and its origin lies on the equator
    zone = replace(placed, crs="EPSG:32631", transform=(100.0, 0.0, 500000.0, 0.0, -100.0, 10000.0))
    (west, north), *_, (_, south) = footprint(zone)
    assert (west, south) == (3.0, 0.0)
    assert north == pytest.approx(10_000 / 110_574 / 0.9996, abs=1e-4)


def test_corners_come_from_control_points(scene):
    points = tuple((row, col, 5.0 + col / 100, 45.0 - row / 100) for row in (0, 50, 100) for col in (0, 50))
    loose = replace(scene, crs=None, transform=None, control=points)
    assert footprint(loose) == ((5.0, 45.0), (5.5, 45.0), (5.5, 44.0), (5.0, 44.0))
    scattered = (*points[:2], *points[4:], (37.0, 20.0, 5.2, 44.6))
    assert footprint(replace(loose, control=scattered)) == footprint(loose)


def test_what_is_tied_to_no_place_has_no_corners(scene):
    assert footprint(replace(scene, crs=None, transform=None, control=())) is None
    assert footprint(replace(scene, crs=None, transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0), control=())) is None
    site = 'LOCAL_CS["a building site",UNIT["metre",1]]'
    assert footprint(replace(scene, crs=site, transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0), control=())) is None
