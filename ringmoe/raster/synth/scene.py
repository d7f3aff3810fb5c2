"""A whole synthetic scene: all rasters and lists of one landscape, ready to be written."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal

import numpy as np

from ringmoe.modality import MS, OPT, SAR_L1, SAR_L2, ModalitySpec, Unit
from ringmoe.raster.synth import optics, radar
from ringmoe.raster.synth.boxes import Box
from ringmoe.raster.synth.covers import Cover
from ringmoe.raster.synth.fields import Array, dilate, generator
from ringmoe.raster.synth.ground import Ground, paint, with_vehicles
from ringmoe.raster.synth.landscape import TIMES_T, Landscape, a_year_later, build

# H rows, W columns, C bands

Role = Literal["scene", "label", "later", "frame"]
_FIRST = datetime(2024, 6, 18, 10, 24, tzinfo=UTC)
_LATER = _FIRST + timedelta(days=364)
_BLUR_REACH = 3  # how far the sensors' optics spread a change, pixels
CHANGE_LEGEND = {
    0: "unchanged",
    1: "changed: building, wood or field",
    2: "the land is the same but looks different: a ship or vehicle moved, a shadow or echo of a change beside it",
}


@dataclass(frozen=True)
class Raster:
    """One file of a scene.

    Attributes:
        path: Its name in the scene's folder.
        pixels_CHW: Its values.
        role: What it is for.
        descriptions: Name of each band.
        spec: Its modality; None for labels.
        units: What the numbers are; None for labels.
        legend: Meaning of each class; None where there are no classes.
        acquired: When it would have been taken.
        corner: Column and row of its upper left corner in the scene.
    """

    path: str
    pixels_CHW: Array
    role: Role
    descriptions: tuple[str, ...]
    acquired: datetime
    spec: ModalitySpec | None = None
    units: Unit | None = None
    legend: dict[int, str] | None = None
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class View:
    """What the sensors have before them at one date: the ground with its vehicles, lit by the sun and by the radar."""

    landscape: Landscape
    static: Ground
    ground: Ground
    radiance_CHW: Array
    echoes: radar.Covariance

    @classmethod
    def of(cls, landscape: Landscape) -> "View":
        """Paints the landscape and lights it."""
        static = paint(landscape)
        ground = with_vehicles(static, landscape.vehicle_boxes())
        lit_CHW = optics.radiance(ground, optics.sun_of(landscape.place))
        return cls(landscape, static, ground, lit_CHW, radar.covariance(ground, radar.look_of(landscape.place)))

    def images(self, folder: str, role: Role, acquired: datetime) -> Iterator[Raster]:
        """The four modalities."""
        draw = self.landscape.generator
        rgb_CHW = optics.camera(self.radiance_CHW, draw("camera"))
        yield Raster(f"{folder}optical.tif", rgb_CHW, role, OPT.bands, acquired, OPT, "dn")
        bands_CHW = optics.scanner(self.radiance_CHW, draw("scanner"))
        yield Raster(f"{folder}multispectral.tif", bands_CHW, role, MS.bands, acquired, MS, "reflectance")
        slc_CHW = radar.image(self.echoes, draw("speckle"))
        yield Raster(f"{folder}sar_l1.tif", slc_CHW, role, SAR_L1.bands, acquired, SAR_L1, "complex")
        detected_CHW = radar.amplitude(slc_CHW)
        yield Raster(f"{folder}sar_l2.tif", detected_CHW, role, SAR_L2.bands, acquired, SAR_L2, "amplitude")


class Scene:
    """A scene of a seed: a pure function of (seed, number, size)."""

    def __init__(self, seed: int, number: int, size: int) -> None:
        self.place = (seed, number, size)
        self.name = f"scene_{number:03d}"
        rng = generator(*self.place, "map")
        self.crs = f"EPSG:{32600 + int(rng.integers(29, 38))}"
        self.origin = (float(rng.integers(300_000, 700_000)), float(rng.integers(4_900_000, 5_800_000)))

    @cached_property
    def first(self) -> View:
        """The first date."""
        return View.of(build(*self.place))

    @cached_property
    def later(self) -> View:
        """The same place a year later."""
        return View.of(a_year_later(self.first.landscape))

    def transform(self, corner: tuple[int, int] = (0, 0)) -> tuple[float, float, float, float, float, float]:
        """Affine transform of a raster whose upper left corner is this column and row: one pixel is one metre."""
        return (1.0, 0.0, self.origin[0] + corner[0], 0.0, -1.0, self.origin[1] - corner[1])

    def rasters(self) -> Iterator[Raster]:
        """Every raster of the scene, one after the other."""
        yield from self.first.images("", "scene", _FIRST)
        legend = {int(cover): cover.name.lower() for cover in Cover}
        yield Raster("cover.tif", self.first.ground.cover_HW[None], "label", ("cover",), _FIRST, legend=legend)
        yield Raster("height.tif", self.first.ground.height_HW[None], "label", ("height_m",), _FIRST)
        yield from self.later.images("later/", "later", _LATER)
        change_HW = changes(self.first, self.later)
        yield Raster("later/change.tif", change_HW[None], "label", ("change",), _LATER, legend=CHANGE_LEGEND)
        yield from self._frames()

    def objects(self) -> dict[str, tuple[datetime, tuple[Box, ...]]]:
        """File name to the time and the objects of each date."""
        dates = {"objects.json": (_FIRST, self.first), "later/objects.json": (_LATER, self.later)}
        return {
            name: (time, view.landscape.buildings + view.landscape.ships + view.landscape.vehicle_boxes())
            for name, (time, view) in dates.items()
        }

    @cached_property
    def frame_window(self) -> tuple[int, int, int]:
        """Column and row of the upper left corner of the video, and its size: half the scene, round the first town."""
        size = self.place[2] // 2
        town = self.first.landscape.towns[0]
        col, row = (int(np.clip(v - size / 2, 0, self.place[2] - size)) for v in (town.x, town.y))
        return col, row, size

    def tracks(self) -> str:
        """Vehicles in the frames as MOT text: frame (from 1), track, left, top, width, height, 1, -1, -1, -1.

        Boxes are upright, in pixels of the frame from its upper left corner, and wholly inside it.
        """
        col, row, size = self.frame_window
        lines = []
        for number, seconds in enumerate(TIMES_T, start=1):
            for box in self.first.landscape.vehicle_boxes(float(seconds)):
                left, top, width, height = box.upright
                left, top = left - col, top - row
                if min(left, top) >= 0 and max(left + width, top + height) <= size:
                    lines.append(f"{number},{box.track},{left:.2f},{top:.2f},{width:.2f},{height:.2f},1,-1,-1,-1\n")
        return "".join(lines)

    def _frames(self) -> Iterator[Raster]:
        """The video: a camera that does not move."""
        view = self.first
        col, row, size = self.frame_window
        sun = optics.sun_of(self.place)
        for number, seconds in enumerate(TIMES_T):
            boxes = view.landscape.vehicle_boxes(float(seconds))
            ground = with_vehicles(view.static, boxes).crop(row, col, size)
            picture_CHW = optics.camera(optics.radiance(ground, sun), view.landscape.generator(f"frame {number}"))
            time = _FIRST + timedelta(seconds=float(seconds))
            name = f"frames/frame_{number:03d}.tif"
            yield Raster(name, picture_CHW, "frame", OPT.bands, time, OPT, "dn", corner=(col, row))


def changes(first: View, later: View) -> Array:
    """What differs between two dates, beyond noise: (H, W) uint8, classes of ``CHANGE_LEGEND``."""
    one, two = first.ground, later.ground
    passing_HW = np.isin(one.cover_HW, (Cover.SHIP, Cover.VEHICLE)) | np.isin(two.cover_HW, (Cover.SHIP, Cover.VEHICLE))
    lasting_HW = (one.cover_HW != two.cover_HW) | (one.height_HW != two.height_HW)
    lasting_HW |= (one.albedo_CHW != two.albedo_CHW).any(axis=0)
    lasting_HW &= ~passing_HW
    seen_HW = (first.radiance_CHW != later.radiance_CHW).any(axis=0) | (first.echoes.hh_HW != later.echoes.hh_HW)
    seen_HW = dilate(seen_HW, _BLUR_REACH)
    return np.where(lasting_HW, 1, np.where(seen_HW, 2, 0)).astype(np.uint8)
