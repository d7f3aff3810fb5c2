"""An archive as archives are: many sensors, each in its own layout, with all that goes wrong; every pixel is drawn.

Acquisitions are cut from a few synthetic landscapes, turned and mirrored, and written as their agencies deliver them.
Which layout and which flaw an acquisition has is a matter of its number alone.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np

from ringmoe.errors import ConfigError, SceneError
from ringmoe.raster.synth import optics, products, radar
from ringmoe.raster.synth.fields import Array, generator
from ringmoe.raster.synth.flaws import FLAWS, break_file, clouds, overcast, spoil
from ringmoe.raster.synth.products import Shot, geotiff, reflectance_to
from ringmoe.raster.synth.scene import Scene
from ringmoe.raster.synth.write import SMALLEST, claim_folder
from ringmoe.raster.write import write_geotiff

# C channels, H rows, W columns of an acquisition

_REVISION = 1  # raised when the same settings give other pixels
_FIRST = datetime(2024, 3, 4, 10, 24, 31, tzinfo=UTC)
_SHOTS_OF_LANDSCAPE = 8  # of each layout: four quarters, and those once more turned
_STRAYS = "strays"
_CYCLE = (
    *("", "", "border", "", "cloud", "", "saturated", "", "", "stripes", "", ""),
    *("repeat", "empty", "not_finite", "cloud", "broken"),
)
"""Flaws in turn; their number and that of the layouts share no divisor, so each layout has each flaw some time. What is
repeated is the acquisition of the same layout before, as many places back as there are layouts: one without a flaw."""


@dataclass(frozen=True)
class Layout:
    """One kind of delivery.

    Attributes:
        key: Name of its folder.
        source: What of a landscape it is made from: "rgb", "reflectance", "complex" or "amplitude".
        gsd: Side of a pixel, metres.
        quantise: From these numbers to those that are delivered.
        highest: Number of a saturated pixel; None where there is none.
        write: Writes an acquisition into a folder of its own.
        is_float: Its files hold floating-point numbers.
    """

    key: str
    source: str
    gsd: float
    quantise: Callable[[Array], Array]
    highest: float | None
    write: Callable[[Path, Shot], None]
    is_float: bool = False


def _as_it_is(pixels_CHW: Array) -> Array:
    return pixels_CHW


_RGB, _QUAD = ("R", "G", "B"), ("HH", "HV", "VH", "VV")
_AERIAL = geotiff(modality="opt", units="dn", sensor="aerial camera", bands=_RGB, compress="deflate", tiled=True)
_ORTHO = geotiff(modality="opt", units="dn", sensor="orthophoto", bands=_RGB, compress="deflate")
_QUADPOL = geotiff(modality="sar_l1", units="complex", sensor="airborne C-SAR", bands=_QUAD, compress="deflate")
_DETECTED = geotiff(modality="sar_l2", units="amplitude", sensor="airborne C-SAR", bands=("A",), compress="deflate")

LAYOUTS = (
    Layout("aerial", "rgb", 1.0, _as_it_is, 255, _AERIAL),
    Layout("sentinel2", "reflectance", 10.0, reflectance_to(1e4, 1000, "uint16", 65535), 65535, products.sentinel2),
    Layout("sentinel1_grd", "amplitude", 10.0, reflectance_to(250.0, 0, "uint16", 65535), None, products.sentinel1_grd),
    Layout("quadpol", "complex", 2.0, _as_it_is, None, _QUADPOL, is_float=True),
    Layout("landsat", "reflectance", 30.0, reflectance_to(1 / 2.75e-5, 7273, "uint16", 65535), 65535, products.landsat),
    Layout("orthophoto", "rgb", 0.5, _as_it_is, 255, _ORTHO),
    Layout("gaofen3", "complex", 8.0, products.to_gaofen, None, products.gaofen3),
    Layout("planet", "reflectance", 3.0, reflectance_to(1e4, 0, "uint16", 65535), 65535, products.planet),
    Layout("detected", "amplitude", 2.0, lambda pixels_CHW: pixels_CHW[1:], None, _DETECTED, is_float=True),
    Layout("naip", "reflectance", 1.0, reflectance_to(450, 0, "uint8", 255), 255, products.naip),
    Layout("sentinel1_slc", "complex", 10.0, products.to_complex_int16, None, products.sentinel1_slc),
    Layout("gaofen2", "reflectance", 4.0, reflectance_to(2000, 0, "uint16", 1023), 1023, products.gaofen2),
)


@dataclass(frozen=True, kw_only=True)
class ArchiveSettings:
    """What an archive is a pure function of.

    Attributes:
        seed: Another seed, other landscapes.
        scenes: How many acquisitions.
        size: Height and width of each, pixels.
        archive: Version of the drawing itself.
    """

    seed: int = 0
    scenes: int = 200
    size: int = 384
    archive: int = _REVISION

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: No acquisition, or one too small or too odd to be drawn.
        """
        if not 1 <= self.scenes <= 9999:
            raise ConfigError(f"scenes is {self.scenes}; expected 1 to 9999")
        if self.size < SMALLEST or self.size % 2:
            raise ConfigError(f"size is {self.size}; expected an even number of pixels, at least {SMALLEST}")


@dataclass(frozen=True)
class WrittenShot:
    """What was done for one acquisition.

    Attributes:
        folder: Where it lies.
        layout: Its layout.
        flaw: Its flaw; empty for none.
        num_bytes: What its files take.
        reused: It was there already.
    """

    folder: Path
    layout: str
    flaw: str
    num_bytes: int
    reused: bool


def write_archive(out: Path, settings: ArchiveSettings) -> Iterator[WrittenShot]:
    """Writes what ``out`` does not have yet of the archive, one acquisition for each step of the iterator.

    Each acquisition appears whole or not at all, so an interrupted call is continued by the same call.

    Raises:
        ConfigError: ``out`` holds something else, or scenes of other settings.
        SceneError: A file cannot be written, for example because the disk is full.
    """
    claim_folder(out, {"synthetic": True, **asdict(settings)}, _readme(settings))
    _write_strays(out / _STRAYS)
    num_landscapes = -(-settings.scenes // (len(LAYOUTS) * _SHOTS_OF_LANDSCAPE))
    plans = [_Plan.of(number, num_landscapes) for number in range(settings.scenes)]
    for plan in sorted(plans, key=lambda plan: plan.landscape):  # each landscape is drawn once
        folder = out / plan.layout.key / f"{plan.number:04d}"
        reused = folder.is_dir()
        if not reused:
            _write_shot(folder, plan, settings)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield WrittenShot(folder, plan.layout.key, plan.flaw, num_bytes, reused)


@dataclass(frozen=True)
class _Plan:
    """What an acquisition shows.

    Attributes:
        number: Its number.
        layout: How it is delivered.
        flaw: What is wrong with it; empty for nothing.
        shown: Number of the acquisition whose ground and time it has: another one where it repeats it.
        landscape: Which landscape this is cut from.
        quarter: Which quarter of it.
        turn: How it is turned and mirrored, 0 to 7.
    """

    number: int
    layout: Layout
    flaw: str
    shown: int
    landscape: int
    quarter: int
    turn: int

    @classmethod
    def of(cls, number: int, num_landscapes: int) -> "_Plan":
        """The plan of an acquisition by its number."""
        flaw = _CYCLE[number % len(_CYCLE)]
        shown = number - len(LAYOUTS) if flaw == "repeat" and number >= len(LAYOUTS) else number
        slot, landscape = divmod(shown // len(LAYOUTS), num_landscapes)
        return cls(number, LAYOUTS[number % len(LAYOUTS)], flaw, shown, landscape, slot % 4, slot // 4 % 8)


def _write_shot(folder: Path, plan: _Plan, settings: ArchiveSettings) -> None:
    """Draws an acquisition and writes it into a folder of its own.

    Raises:
        SceneError: It cannot be written.
    """
    sources, zone, (x, y) = _landscape(settings.seed, plan.landscape, 2 * settings.size)
    top, left = (settings.size * part for part in divmod(plan.quarter, 2))
    cut_CHW = sources[plan.layout.source][:, top : top + settings.size, left : left + settings.size]
    turned_CHW = np.rot90(cut_CHW, plan.turn % 4, axes=(1, 2))[:, :, :: -1 if plan.turn >= 4 else 1]
    rng = generator(settings.seed, plan.shown, "archive")
    cloud_HW = np.zeros(turned_CHW.shape[1:], dtype=np.float32)
    if plan.flaw == "cloud" and plan.layout.source in ("rgb", "reflectance"):
        cloud_HW = clouds(rng, settings.size)
        scale = 255.0 if plan.layout.source == "rgb" else 1.0
        turned_CHW = scale * overcast(turned_CHW / scale, cloud_HW)
        turned_CHW = np.rint(turned_CHW).astype("uint8") if plan.layout.source == "rgb" else turned_CHW
    pixels_CHW = spoil(
        plan.layout.quantise(turned_CHW),
        plan.flaw,
        rng,
        highest=plan.layout.highest,
        can_be_infinite=plan.layout.is_float,
    )
    spread = generator(settings.seed, plan.shown, "place").uniform(-60_000, 60_000, 2)
    shot = Shot(
        number=plan.number,
        time=_FIRST + timedelta(days=plan.shown, minutes=7 * plan.shown % 90),
        zone=zone,
        corner=(float(round(x + spread[0])), float(round(y + spread[1]))),
        gsd=plan.layout.gsd,
        pixels_CHW=np.ascontiguousarray(pixels_CHW),
        cloud_HW=cloud_HW > 0.3,
    )
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        plan.layout.write(partial, shot)
        if plan.flaw == "broken":
            break_file(max(partial.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0))
        partial.replace(folder)
    except OSError as error:  # rasterio's errors among them
        shutil.rmtree(partial, ignore_errors=True)
        raise SceneError(
            f"{folder} cannot be written: {error.strerror or error}. Free space, and run the same command again"
        ) from error


@lru_cache(maxsize=1)
def _landscape(seed: int, number: int, size: int) -> tuple[dict[str, Array], int, tuple[float, float]]:
    """What sensors see of a landscape, its UTM zone, and where in it it lies."""
    scene = Scene(seed, number, size)
    view = scene.first
    slc_CHW = radar.image(view.echoes, view.landscape.generator("speckle"))
    detected_CHW = np.concatenate((np.abs(slc_CHW[2:3]), np.abs(slc_CHW[3:4]))).astype(np.float32)
    sources = {
        "rgb": optics.camera(view.radiance_CHW, view.landscape.generator("camera")),
        "reflectance": optics.scanner(view.radiance_CHW, view.landscape.generator("scanner")).astype(np.float32) / 1e4,
        "complex": slc_CHW,
        "amplitude": detected_CHW,
    }
    return sources, int(scene.crs.removeprefix("EPSG:326")), scene.origin


def _write_strays(folder: Path) -> None:
    """Files that are no scenes, as every archive has them: each is refused by name, or passed over."""
    noise_CHW = generator("strays").integers(1, 200, (5, SMALLEST, SMALLEST)).astype("uint8")
    label = {"RINGMOE_ROLE": "label"}
    for name, pixels_CHW, bands, tags in (
        ("label.tif", noise_CHW[:1], ("class",), label),
        ("five_bands.tif", noise_CHW, ("",) * 5, {}),
        ("small.tif", noise_CHW[:3, :40, :40], _RGB, {}),
    ):
        marked = {"RINGMOE_SYNTHETIC": "YES", **tags}
        write_geotiff(folder / name, pixels_CHW, crs=None, transform=None, descriptions=bands, tags=marked)
    (folder / "cut_off.tif").write_bytes((folder / "five_bands.tif").read_bytes()[:100])
    (folder / "LC09_L2SP_193028_20220822_20220824_02_T1.tar").write_bytes(b"packed")
    (folder / "notes.txt").write_text("Call the ground station about orbit 11437.\n", encoding="utf-8")


def _readme(settings: ArchiveSettings) -> str:
    """What lies in the folder, for whoever finds it."""
    listed = "\n".join(f"  {layout.key:<14} {layout.source}, {layout.gsd:g} m" for layout in LAYOUTS)
    command = f"ringmoe synth archive --scenes {settings.scenes} --size {settings.size} --seed {settings.seed}"
    return f"""SYNTHETIC ARCHIVE. Nothing here was observed: every pixel was drawn by a program.

Made by   {command}   (revision {settings.archive})
The same command writes the same pixels. Names, dates, places and constants are made up in the form that agencies give
them, so that readers of their products can be tried. Every raster has the tag RINGMOE_SYNTHETIC=YES.

One folder for each layout, one folder in it for each acquisition, by number:
{listed}

Some have a flaw, in turn: {", ".join(FLAWS)}. {_STRAYS}/ holds files that are no scenes.
"""
