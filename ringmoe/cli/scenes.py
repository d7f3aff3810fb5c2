"""``ringmoe shards plan``: say what scenes and products there are, and what would become of them, before any work."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape

from ringmoe import modality as registry
from ringmoe.batch import Radiometry
from ringmoe.cli.console import console
from ringmoe.cli.places import print_places
from ringmoe.config import files
from ringmoe.data.entries import RefusedFile
from ringmoe.data.plan import BuildConfig, refused_files
from ringmoe.errors import ConfigError
from ringmoe.raster.declare import Declarations
from ringmoe.raster.places import Place, find_places
from ringmoe.raster.recognise import Catalogue, survey
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig

_LONGEST_CRS = 40  # an authority's code; else it is a page of WKT


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """What is said of scenes beside what they say of themselves.

    Attributes:
        modality: Modality of all scenes, where the files do not say it.
        declarations: YAML file that says what the scenes do not say of themselves (bands, units, sensor, ...).
        modalities: YAML file that declares further modalities.
        calibrate: Read radar products as amplitudes whose square is sigma nought; else their numbers stay as delivered.
    """

    modality: str | None = None
    declarations: Path | None = None
    modalities: Path | None = None
    calibrate: bool = True

    def load(self) -> Declarations | None:
        """Registers further modalities and reads the declarations.

        Raises:
            ConfigError: A file cannot be read or contradicts itself.
        """
        if self.modalities is not None:
            registry.load(self.modalities)
        return None if self.declarations is None else Declarations.load(self.declarations)


@dataclass(frozen=True, kw_only=True)
class ShardsPlan(SceneOptions):
    """Scenes to look at.

    Attributes:
        paths: Files and folders of scenes and products.
        tiling: How the scenes would be cut.
        grouped: Say which scenes are of one place, as for a build with --grouped.
        min_members: Fewest scenes of a place, as for the build; two if not given.
        json: Print JSON instead of words.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SCENES...")]
    tiling: TilingConfig = field(default_factory=TilingConfig)
    grouped: bool = False
    min_members: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Checks the command line.

        Raises:
            ConfigError: No path is named, or a setting of grouped shards is wrong.
        """
        if not self.paths:
            raise ConfigError("name at least one file or folder of scenes")
        BuildConfig(tiling=self.tiling, grouped=self.grouped, min_members=self.min_members)  # which checks them


def run(config: ShardsPlan) -> None:
    """Lists what was recognised and what was not. Only names, headers and metadata are read.

    Raises:
        SceneError: A path does not exist, or a file that was named itself is no usable scene.
    """
    catalogue = survey(
        config.paths,
        declarations=config.load(),
        modality=config.modality,
        tile=config.tiling.tile,
        calibrate=config.calibrate,
    )
    rows = [describe(scene, config.tiling) for scene in catalogue.scenes]
    places, alone = (
        find_places(catalogue.scenes, config.tiling.tile, config.min_members) if config.grouped else ([], [])
    )
    if config.json:
        told = {"scenes": rows, "refused": files.to_dict(refused_files(catalogue)), "ignored": _ignored(catalogue)}
        if config.grouped:
            told |= {"places": [describe_place(place, config.tiling) for place in places]}
            told |= {"alone": [{"name": it.scene.name, "code": it.code, "message": it.message} for it in alone]}
        print(json.dumps(told, indent=2))
        return
    if config.grouped:
        print_places(places, alone, config.tiling)
    else:
        for row in rows:
            console.print(_lines(row), soft_wrap=True, markup=False, highlight=False)
    _print_totals(catalogue, rows)
    print_files("refused", refused_files(catalogue))


def describe(scene: Scene, tiling: TilingConfig) -> dict[str, Any]:
    """What is known of a scene, as plain values.

    ``tiles`` counts windows before any is dropped, ``uncovered`` the pixels at the right and the bottom, or between
    windows, that none of them reaches.
    """
    spec, grid = registry.get(scene.modality), tiling.grid(scene.height, scene.width)
    present = [name for name, band in zip(spec.bands, scene.bands, strict=True) if band is not None]
    return {
        "name": scene.name,
        "product": None if scene.product is None else files.to_dict(scene.product),
        "sensor": scene.sensor,
        "modality": scene.modality,
        "height": scene.height,
        "width": scene.width,
        "bands": present,
        "absent": [name for name in spec.bands if name not in present],
        "dtype": scene.dtype,
        "units": scene.units,
        "radiometry": None if scene.radiometry is None else files.to_dict(scene.radiometry),
        "acquired": scene.acquired,
        "crs": scene.crs,
        "control_points": len(scene.control),
        "gsd": scene.gsd,
        "files": [path.relative_to(scene.path.parent).as_posix() for path in scene.files],
        "tiles": grid.num_tiles,
        "uncovered": grid.num_uncovered,
    }


def describe_place(place: Place, tiling: TilingConfig) -> dict[str, Any]:
    """A place as plain values; ``windows`` counts them before any is dropped."""
    return {
        "name": place.name,
        "height": place.height,
        "width": place.width,
        "members": [
            {"name": member.name, "scene": member.scene.name, "modality": member.scene.modality, "ratio": member.ratio}
            for member in place.members
        ],
        "windows": tiling.grid(place.height, place.width).num_tiles,
    }


def _ignored(catalogue: Catalogue) -> list[str]:
    return [path.relative_to(catalogue.base).as_posix() for path in catalogue.ignored]


def _lines(row: dict[str, Any]) -> str:
    """A scene in words: its name, and below it what it is."""
    rule = "" if row["radiometry"] is None else f" ({Radiometry(**row['radiometry'])})"
    absent = f" without {', '.join(row['absent'])}" if row["absent"] else ""
    ties = f"{row['control_points']} control points" if row["control_points"] else "no reference system"
    crs = row["crs"] or ties
    facts = (
        f"{row['modality']}: {', '.join(row['bands'])}{absent}",
        f"{row['height']} x {row['width']} pixels",
        f"{row['units']} as {row['dtype']}{rule}",
        row["acquired"] or "time not known",
        crs if len(crs) <= _LONGEST_CRS else "reference system of its own",
        f"{row['tiles']:,} windows",
    )
    what = row["product"]["kind"] if row["product"] else f"file, sensor {row['sensor']}"
    return f"{row['name']}\n  {what}; {'; '.join(facts)}"


def _print_totals(catalogue: Catalogue, rows: Sequence[dict[str, Any]]) -> None:
    """Prints how much of what there is."""
    for key, num in Counter(row["modality"] for row in rows).items():
        found = [row for row in rows if row["modality"] == key]
        tiles, uncovered = (sum(row[name] for row in found) for name in ("tiles", "uncovered"))
        share = uncovered / sum(row["height"] * row["width"] for row in found)
        console.print(
            f"{key}: {num} {'scene' if num == 1 else 'scenes'}, {tiles:,} windows before any is dropped; "
            f"{share:.1%} of the pixels are in none",
            soft_wrap=True,
        )
    print_left_alone(catalogue)
    if not rows:
        console.print("no usable scene")


def print_left_alone(catalogue: Catalogue) -> None:
    """Prints how much of what there is is neither used nor refused."""
    products = {scene.product.identifier: scene.product for scene in catalogue.scenes if scene.product is not None}
    if unused := sum(product.unused for product in products.values()):
        console.print(f"in products: {unused} rasters that no scene takes anything from")
    if catalogue.ignored:
        console.print(f"passed over because they are no rasters: {len(catalogue.ignored)} files")


def print_files(what: str, left_out: tuple[RefusedFile, ...]) -> None:
    """Prints files that were left out, those with the same message together."""
    if not left_out:
        return
    counts = Counter(file.code for file in left_out)
    console.print(f"{len(left_out)} files {what}: {', '.join(f'{num} {code}' for code, num in counts.most_common())}")
    by_message: dict[str, list[str]] = {}
    for file in left_out:
        by_message.setdefault(file.message, []).append(file.name)
    for message, names in by_message.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"  {escape(names[0])}{more}: {escape(message)}", soft_wrap=True)
