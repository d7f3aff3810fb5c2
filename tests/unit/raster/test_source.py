"""Geolocation as the files give it."""

from typing import Any

import pytest
import rasterio
from rasterio.control import GroundControlPoint


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
