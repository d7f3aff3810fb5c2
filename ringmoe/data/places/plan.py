"""Places to work units: runs of rows of windows, so that units stay independent and no tile is cut twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ringmoe import modality as registry
from ringmoe.data.entries import RefusedFile, SceneEntry
from ringmoe.data.layout import slugs
from ringmoe.data.places.manifest import PLACES
from ringmoe.data.places.unit import PlaceSpan, PlaceUnit
from ringmoe.data.plan import BuildConfig, Plan, digest_of, refused_files
from ringmoe.errors import SceneError
from ringmoe.raster.places import LeftOut, Place, find_places
from ringmoe.raster.recognise import Catalogue
from ringmoe.raster.scene import Scene


@dataclass(frozen=True)
class PlacePlan(Plan):
    """A plan of grouped shards.

    Attributes:
        places: All places, sorted by name.
    """

    places: tuple[Place, ...] = ()


def make_place_plan(catalogue: Catalogue, config: BuildConfig) -> PlacePlan:
    """Finds the places among the scenes of a catalogue and cuts them into units.

    Raises:
        SceneError: There is no place, or a scene that was named itself is in none.
    """
    places, left_out = find_places(catalogue.scenes, config.tiling.tile, config.min_members)
    for alone in left_out:
        if alone.scene.name in catalogue.named:
            raise SceneError(f"{alone.scene.name}: {alone.message}")
    if not places:
        raise SceneError(_no_place(left_out))
    scenes: dict[str, tuple[SceneEntry, ...]] = {}
    used = sorted((member.scene for place in places for member in place.members), key=lambda scene: scene.name)
    for spec in registry.known():
        if found := [scene for scene in used if scene.modality == spec.key]:
            scenes[spec.key] = tuple(
                SceneEntry(name=scene.name, slug=slug, digest=digest_of(scene), synthetic=scene.synthetic)
                for scene, slug in zip(found, slugs(scene.name for scene in found), strict=True)
            )
    alone_files = [RefusedFile(name=alone.scene.name, code=alone.code, message=alone.message) for alone in left_out]
    refused = tuple(sorted((*refused_files(catalogue), *alone_files), key=lambda file: file.name))
    return PlacePlan(config, scenes, _units(places, config), refused, tuple(places))


def cut_places(scenes: Sequence[Scene], config: BuildConfig) -> tuple[PlaceUnit, ...]:
    """The units of the places among some scenes."""
    return _units(find_places(scenes, config.tiling.tile, config.min_members)[0], config)


def _units(places: Sequence[Place], config: BuildConfig) -> tuple[PlaceUnit, ...]:
    return tuple(
        PlaceUnit(PLACES, number, (), config, places=spans) for number, spans in enumerate(_cut(places, config))
    )


def _cut(places: Sequence[Place], config: BuildConfig) -> Iterator[tuple[PlaceSpan, ...]]:
    """Fills units with whole rows of windows, place after place; each window counts as many tiles as it has members."""
    spans: list[PlaceSpan] = []
    room = config.tiles_per_shard
    for number, (place, slug) in enumerate(zip(places, slugs(place.name for place in places), strict=True)):
        grid = config.tiling.grid(place.height, place.width)
        num_rows, num_cols = len(grid.row_starts), len(grid.col_starts)
        row_tiles = num_cols * len(place.members)
        need = len(place.members) if config.min_members is None else config.min_members
        row = 0
        while row < num_rows:
            if room < row_tiles and spans:
                yield tuple(spans)
                spans, room = [], config.tiles_per_shard
            fitting = min(num_rows - row, max(room // row_tiles, 1))
            spans.append(PlaceSpan(place, number, slug, range(row, row + fitting), fitting * num_cols, need))
            row += fitting
            room -= fitting * row_tiles
    if spans:
        yield tuple(spans)


def _no_place(left_out: Sequence[LeftOut]) -> str:
    """The message for scenes that make no place at all."""
    by_message: dict[str, list[str]] = {}
    for alone in left_out:
        by_message.setdefault(alone.message, []).append(alone.scene.name)
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {message}"
        for message, names in by_message.items()
    ]
    return "\n  ".join(["no two scenes make a place:", *lines])
