"""A folder of synthetic scenes: written file by file, reused when it is the same, refused when it is not."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ringmoe.errors import ConfigError
from ringmoe.raster.synth.boxes import feature_collection
from ringmoe.raster.synth.covers import Cover
from ringmoe.raster.synth.landscape import FRAME_SECONDS, NUM_FRAMES
from ringmoe.raster.synth.scene import CHANGE_LEGEND, Raster, Scene
from ringmoe.raster.write import write_geotiff, write_whole

SMALLEST = 192
_SETTINGS = "synth.json"
_REVISION = 1  # raised when the same settings give other pixels
_IMAGES = ("optical.tif", "multispectral.tif", "sar_l1.tif", "sar_l2.tif")
SCENE_FILES = (
    *_IMAGES,
    *("cover.tif", "height.tif", "objects.json"),
    *(f"later/{name}" for name in (*_IMAGES, "change.tif", "objects.json")),
    *(f"frames/frame_{number:03d}.tif" for number in range(NUM_FRAMES)),
    "frames/tracks.txt",
)


@dataclass(frozen=True, kw_only=True)
class SynthSettings:
    """What a folder of synthetic scenes is a pure function of.

    Attributes:
        seed: Another seed, other landscapes.
        scenes: How many.
        size: Height and width of each, pixels of one metre.
        revision: Version of the drawing itself.
    """

    seed: int
    scenes: int
    size: int
    revision: int = _REVISION

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: No scene, too many, or one too small to hold a landscape.
        """
        if self.scenes < 1 or self.scenes > 999:
            raise ConfigError(f"scenes is {self.scenes}; expected 1 to 999")
        if self.size < SMALLEST:
            raise ConfigError(f"size is {self.size}; expected at least {SMALLEST} pixels: a tile, and room for a town")


@dataclass(frozen=True)
class WrittenScene:
    """What was done for one scene.

    Attributes:
        folder: Where it lies.
        num_files: How many files it has.
        num_bytes: What they take.
        reused: It was there already.
    """

    folder: Path
    num_files: int
    num_bytes: int
    reused: bool


def write_scenes(out: Path, settings: SynthSettings) -> Iterator[WrittenScene]:
    """Writes the scenes that ``out`` does not have yet, one for each step of the iterator.

    Every file appears whole or not at all, so an interrupted call is continued by the same call.

    Raises:
        ConfigError: ``out`` holds something else, or scenes of other settings.
        SceneError: A file cannot be written, for example because the disk is full.
    """
    claim_folder(out, _record(settings), _readme(settings))
    for number in range(settings.scenes):
        scene = Scene(settings.seed, number, settings.size)
        folder = out / scene.name
        reused = all((folder / name).is_file() for name in SCENE_FILES)
        if not reused:
            _write_scene(folder, scene)
        num_bytes = sum((folder / name).stat().st_size for name in SCENE_FILES)
        yield WrittenScene(folder, len(SCENE_FILES), num_bytes, reused)


def claim_folder(out: Path, record: dict[str, object], readme: str) -> None:
    """Makes the folder and says in it what it is, or finds that it says the same already.

    Args:
        out: The folder.
        record: What its content is a pure function of.
        readme: What lies in it, for whoever finds it.

    Raises:
        ConfigError: ``out`` holds something else, or scenes of other settings.
        SceneError: A file cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the synthetic scenes")
    marker = out / _SETTINGS
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{marker} is not JSON ({error}); remove the folder or choose another one") from error
        if found != record:
            differing = [
                f"{name} {found.get(name)} there, {record.get(name)} asked for"
                for name in sorted(found.keys() | record.keys())
                if found.get(name) != record.get(name)
            ]
            raise ConfigError(
                f"{out} holds synthetic scenes of other settings ({'; '.join(differing)}). Choose another folder, "
                "remove this one, or ask for the same settings"
            )
    elif out.is_dir() and any(not _is_partial(path) for path in out.iterdir()):
        raise ConfigError(
            f"{out} is not empty and was not made by ringmoe synth (it has no {_SETTINGS}). Choose an empty folder"
        )
    else:
        write_whole(marker, (json.dumps(record, indent=1) + "\n").encode())
    for left in [path for path in out.rglob(".*") if _is_partial(path)]:  # of a call that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    if not (out / "README.txt").is_file():
        write_whole(out / "README.txt", readme.encode())


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".partial"


def _record(settings: SynthSettings) -> dict[str, object]:
    return {"synthetic": True, **asdict(settings)}


def _write_scene(folder: Path, scene: Scene) -> None:
    """Writes every file of a scene."""
    for raster in scene.rasters():
        write_geotiff(
            folder / raster.path,
            raster.pixels_CHW,
            crs=scene.crs,
            transform=scene.transform(raster.corner),
            descriptions=raster.descriptions,
            tags=_tags(raster, scene),
        )
    for name, (time, boxes) in scene.objects().items():
        collection = feature_collection(
            boxes, crs=scene.crs, transform=scene.transform(), scene=scene.name, acquired=time.isoformat()
        )
        write_whole(folder / name, (json.dumps(collection, separators=(",", ":")) + "\n").encode())
    write_whole(folder / "frames" / "tracks.txt", scene.tracks().encode())


def _tags(raster: Raster, scene: Scene) -> dict[str, str]:
    """File-level metadata: what readers recognise the raster by, and that nobody observed it."""
    seed, number, _ = scene.place
    tags = {
        "RINGMOE_SYNTHETIC": "YES",
        "RINGMOE_ROLE": raster.role,
        "ACQUIRED": raster.acquired.isoformat(),
        "TIFFTAG_DATETIME": raster.acquired.strftime("%Y:%m:%d %H:%M:%S"),
        "TIFFTAG_IMAGEDESCRIPTION": f"SYNTHETIC, not observed: ringmoe synth, seed {seed}, scene {number}",
        "TIFFTAG_SOFTWARE": "ringmoe synth",
    }
    if raster.spec is not None and raster.units is not None:
        tags["RINGMOE_MODALITY"] = raster.spec.key
        tags["RINGMOE_UNITS"] = raster.units
        tags["SENSOR"] = f"synthetic-{raster.spec.key}"
    if raster.legend is not None:
        tags["LEGEND"] = ", ".join(f"{value}={meaning}" for value, meaning in raster.legend.items())
    return tags


def _readme(settings: SynthSettings) -> str:
    """What lies in the folder, for whoever finds it."""
    covers = ", ".join(f"{int(cover)} {cover.name.lower()}" for cover in Cover)
    change = "\n".join(f"                           {value}  {meaning}" for value, meaning in CHANGE_LEGEND.items())
    command = f"ringmoe synth --scenes {settings.scenes} --size {settings.size} --seed {settings.seed}"
    return f"""SYNTHETIC SCENES. Nothing here was observed: every pixel was drawn by a program.

Made by   {command}   (revision {settings.revision})
The same command writes the same bytes. Places, dates and sensors are invented; the coordinates are a frame of
reference, not a place. Use the scenes to try the software, never as evidence of how well a model sees the Earth.

Each scene_NNN is one landscape of {settings.size} x {settings.size} pixels of 1 m, all rasters on one UTM grid:
  optical.tif            R, G, B        uint8, digital numbers with haze, film curve and noise
  multispectral.tif      B, G, R, NIR   uint16, surface reflectance x 10000 (sunlit, not corrected for slopes)
  sar_l1.tif             HH, HV, VH, VV complex64, single-look scattering amplitudes at C band; |.|^2 is backscatter
  sar_l2.tif             A              float32, detected amplitude sqrt(|HH|^2 + |HV|^2 + |VH|^2 + |VV|^2)
  cover.tif              class of each pixel: {covers}
  height.tif             metres above ground of buildings and trees, 0 elsewhere
  objects.json           GeoJSON: buildings, ships, vehicles; outline in longitude and latitude, upright and rotated
                         box in pixels (x right, y down, from the upper left corner), heading in degrees clockwise
                         from east, height in metres (0 for ships and vehicles)
  later/                 the four images and objects.json of the same place a year later, and
  later/change.tif       what changed between the dates:
{change}
  frames/frame_NNN.tif   {NUM_FRAMES} RGB frames, {FRAME_SECONDS} s apart, of a part of the scene in which vehicles move
  frames/tracks.txt      their boxes, MOT format: frame (from 1), track, left, top, width, height, 1, -1, -1, -1,
                         in pixels of the frame

SAR is drawn in ground geometry (shadows and double bounce, no layover). Speckle is circular complex Gaussian with a
polarimetric covariance for each cover. GeoTIFF tags name role, modality and units: RINGMOE_ROLE, RINGMOE_MODALITY,
RINGMOE_UNITS; RINGMOE_SYNTHETIC=YES is in every file.
"""
