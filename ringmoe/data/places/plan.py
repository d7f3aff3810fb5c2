"""Places to work units: runs of rows of windows, so that units stay independent and no tile is cut twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ringmoe.data.entries import RefusedFile
from ringmoe.data.layout import slugs
from ringmoe.data.places.manifest import PLACES
from ringmoe.data.places.unit import PlaceSpan, PlaceUnit
from ringmoe.data.plan import BuildConfig, Plan, fill_units, refused_files, scene_entries
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
    used = sorted((member.scene for place in places for member in place.members), key=lambda scene: scene.name)
    alone_files = [RefusedFile(name=alone.scene.name, code=alone.code, message=alone.message) for alone in left_out]
    refused = tuple(sorted((*refused_files(catalogue), *alone_files), key=lambda file: file.name))
    return PlacePlan(config, scene_entries(used), _units(places, config), refused, tuple(places))


def cut_places(scenes: Sequence[Scene], config: BuildConfig) -> tuple[PlaceUnit, ...]:
    """The units of the places among some scenes."""
    return _units(find_places(scenes, config.tiling.tile, config.min_members)[0], config)


def _units(places: Sequence[Place], config: BuildConfig) -> tuple[PlaceUnit, ...]:
    return tuple(
        PlaceUnit(PLACES, number, (), config, places=spans) for number, spans in enumerate(_cut(places, config))
    )


def _cut(places: Sequence[Place], config: BuildConfig) -> Iterator[tuple[PlaceSpan, ...]]:
    """Cuts places into the spans of each unit; a window counts as many tiles as the place has members."""
    short_names = slugs(place.name for place in places)
    grids = [config.tiling.grid(place.height, place.width) for place in places]
    sizes = [
        (len(grid.row_starts), len(grid.col_starts) * len(place.members))
        for grid, place in zip(grids, places, strict=True)
    ]
    for runs in fill_units(sizes, config.tiles_per_shard):
        spans = []
        for number, rows in runs:
            place, num_windows = places[number], len(rows) * len(grids[number].col_starts)
            need = len(place.members) if config.min_members is None else config.min_members
            spans.append(PlaceSpan(place, number, short_names[number], rows, num_windows, need))
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
