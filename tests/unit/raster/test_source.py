"""Geolocation as the files give it."""

from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from ringmoe.raster.grid import ControlGrid


@pytest.mark.parametrize(
    ("crs", "transform", "gsd"),
    [
        ("EPSG:4326", (1e-4, 0, 10, 0, -1e-4, 60), 7.87),  # 11.14 m north, 5.57 m east at 60 degrees
        ("EPSG:3857", (20, 0, 1e6, 0, -20, 8399737.9), 10.0),  # the metres of Mercator count half at 60 degrees
        ("EPSG:2263", (3.28084, 0, 9.8e5, 0, -3.28084, 2e5), 1.0),  # feet
        ('LOCAL_CS["site",UNIT["metre",1]]', (2, 0, 0, 0, -2, 0), None),
    ],
)
def test_ground_sampling_distance(
    crs: str, transform: Any, gsd: float | None, write_raster: Any, noise: Any, scene_of: Any
):
    path = write_raster(
        "s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"), crs=crs, transform=rasterio.Affine(*transform)
    )
    assert scene_of(path).gsd == (gsd and pytest.approx(gsd, rel=0.01))


def test_control_points_give_the_distance_only(write_raster: Any, noise: Any, scene_of: Any):
    points = [
        GroundControlPoint(row, col, 10 + 1e-4 * col, -1e-4 * row) for row, col in ((0, 0), (0, 40), (40, 0), (40, 40))
    ]
    scene = scene_of(write_raster("s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"), gcps=points))
    assert (scene.crs, scene.transform) == (None, None)
    assert scene.gsd == pytest.approx(11.1, rel=0.01)


def test_a_transform_without_a_reference_system_is_kept(write_raster: Any, noise: Any, scene_of: Any):
    place = rasterio.Affine(2, 0, 100, 0, -2, 200)
    scene = scene_of(write_raster("s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"), transform=place))
    assert (scene.crs, scene.transform, scene.gsd, scene.control) == (None, tuple(place)[:6], None, ())


def test_rational_polynomials_in_a_file_give_corners(write_raster: Any, noise: Any, scene_of: Any):
    one = [0.0, 1.0] + [0.0] * 18
    polynomials = RPC(
        height_off=100.0, height_scale=500.0, lat_off=45.0, lat_scale=0.1, long_off=-180.0, long_scale=0.1,
        line_off=19.5, line_scale=20.0, samp_off=19.5, samp_scale=20.0,
        line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, samp_num_coeff=one,
        line_den_coeff=[1.0] + [0.0] * 19, samp_den_coeff=[1.0] + [0.0] * 19,
    )  # fmt: skip
    path = write_raster("s.tif", noise("uint8", 3, 40, 40), names=("R", "G", "B"), rpcs=polynomials)
    scene = scene_of(path)
    assert (scene.crs, scene.transform, len(scene.control)) == (None, None, 121)
    corners = ControlGrid(scene.control).corners(0, 0, 40)
    assert corners is not None
    np.testing.assert_allclose(corners, [(179.9, 45.1), (-179.9, 45.1), (-179.9, 44.9), (179.9, 44.9)], atol=1e-6)
