"""Scenes to work units, before any pixel is read.

A unit is a run of tile rows of scenes of one modality, and yields at most one shard for each split. What a unit yields
depends on the unit alone: so units may be built in any order, by any number of workers, again after a kill, and the
bytes are the same.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ringmoe import modality as registry
from ringmoe.config import files
from ringmoe.data.codec import Codec
from ringmoe.data.entries import RefusedFile, SceneEntry
from ringmoe.data.layout import slugs
from ringmoe.data.manifest import Manifest
from ringmoe.errors import ConfigError
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.recognise import Catalogue
from ringmoe.raster.scene import Scene
from ringmoe.raster.tiling import TilingConfig

_DIGEST_SAMPLE = 1 << 16  # bytes from the head, the middle and the end of a scene's file
_NUM_LISTED = 3
_WITHOUT = "-without-"


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How shards are made from scenes.

    Attributes:
        tiling: How scenes are cut.
        quality: Which tiles are dropped.
        tiles_per_shard: Most windows that go into one shard before any is dropped; at least one row of tiles goes.
        codec: How pixels are stored: raw, which reads fastest, or coded without loss, which takes less space.
        grouped: Scenes of one place are cut at the same windows, and a sample holds a tile of each (docs/groups.md).
        min_members: Fewest tiles of a sample of grouped scenes; None asks for one of every scene of the place.
    """

    tiling: TilingConfig = field(default_factory=TilingConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    tiles_per_shard: int = 1024
    codec: Codec = "raw"
    grouped: bool = False
    min_members: int | None = None

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            ConfigError: ``tiles_per_shard`` is not positive, or settings that do not go together.
        """
        if self.tiles_per_shard < 1:
            raise ConfigError(f"tiles_per_shard must be at least 1; it is {self.tiles_per_shard}")
        if self.min_members is not None and (not self.grouped or self.min_members < 1):
            raise ConfigError(
                f"min_members counts tiles of a grouped sample: it is at least 1 (here {self.min_members}), and needs "
                "--grouped"
            )


@dataclass(frozen=True)
class Span:
    """Consecutive rows of tiles of one scene.

    Attributes:
        scene: The scene.
        number: Its number among the scenes of its modality.
        slug: Its short name.
        rows: Indices into the rows of its grid.
        num_windows: Windows in these rows.
    """

    scene: Scene
    number: int
    slug: str
    rows: range
    num_windows: int


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time.

    Attributes:
        modality: Key of the modality.
        number: Number among the units of the modality.
        spans: Rows of tiles in their order.
        config: Settings of the build.
        excluded: Quarantined scenes whose spans were taken out.
        duplicates: Digest of the samples that are dropped as near-duplicates; empty where it has none.
        hashes_only: Only looks for near-duplicates: writes hashes of tiles, and no shards.
    """

    modality: str
    number: int
    spans: tuple[Span, ...]
    config: BuildConfig
    excluded: tuple[str, ...] = ()
    duplicates: str = ""
    hashes_only: bool = False

    @property
    def name(self) -> str:
        """Its name in the plan."""
        return f"{self.modality}-{self.number:06d}{'-hashes' if self.hashes_only else ''}"

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return file_stem(self.name, self.excluded, self.duplicates)

    @property
    def num_windows(self) -> int:
        """Windows of all spans."""
        return sum(span.num_windows for span in self.spans)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Scenes that tiles are cut from."""
        return tuple(span.scene for span in self.spans)

    def without(self, scenes: Collection[str]) -> "Unit":
        """The unit without the spans of some scenes."""
        excluded = sorted({span.scene.name for span in self.spans} & set(scenes))
        kept = tuple(span for span in self.spans if span.scene.name not in scenes)
        return replace(self, spans=kept, excluded=tuple(excluded))


@dataclass(frozen=True)
class Plan:
    """Everything that determines the shards.

    Attributes:
        config: Settings of the build.
        scenes: Scenes of each modality, sorted by name.
        units: Work units, modality by modality.
        refused: Files that are not used.
    """

    config: BuildConfig
    scenes: dict[str, tuple[SceneEntry, ...]]
    units: tuple[Unit, ...]
    refused: tuple[RefusedFile, ...]

    @property
    def num_windows(self) -> int:
        """Windows of all units."""
        return sum(unit.num_windows for unit in self.units)

    def record(self) -> dict[str, Any]:
        """What must be equal for two builds to give the same shards, as plain values."""
        return _record(files.to_dict(self.config), self.scenes)


def make_plan(catalogue: Catalogue, config: BuildConfig) -> Plan:
    """Cuts the scenes of a catalogue into units."""
    units = cut_units(catalogue.scenes, config)
    return Plan(config, scene_entries(catalogue.scenes), units, refused_files(catalogue))


def scene_entries(scenes: Sequence[Scene]) -> dict[str, tuple[SceneEntry, ...]]:
    """What the manifest says of scenes that tiles are cut from, modality by modality."""
    return {
        key: tuple(
            SceneEntry(name=scene.name, slug=slug, digest=digest_of(scene), synthetic=scene.synthetic)
            for scene, slug in found
        )
        for key, found in _by_modality(scenes)
    }


def cut_units(scenes: Sequence[Scene], config: BuildConfig) -> tuple[Unit, ...]:
    """Cuts scenes into units, modality by modality."""
    return tuple(
        Unit(key, number, spans, config)
        for key, found in _by_modality(scenes)
        for number, spans in enumerate(_cut(found, config))
    )


def file_stem(name: str, excluded: Sequence[str], duplicates: str = "") -> str:
    """What the names of a unit's files begin with: other ones for each set of scenes and tiles that it lacks.

    So whoever has not yet heard that a scene is quarantined cannot write over what is built without it.
    """
    left_out = [*excluded, duplicates] if duplicates else [*excluded]
    if not left_out:
        return name
    return f"{name}{_WITHOUT}{hashlib.sha256(json.dumps(left_out).encode()).hexdigest()[:16]}"


def unit_of_stem(stem: str) -> str:
    """Name of the unit that a stem belongs to, whatever the unit lacks."""
    return stem.partition(_WITHOUT)[0]


def refused_files(catalogue: Catalogue) -> tuple[RefusedFile, ...]:
    """What a catalogue refuses, by relative names."""
    return tuple(
        RefusedFile(
            name=refusal.path.relative_to(catalogue.base).as_posix(), code=refusal.code, message=refusal.message
        )
        for refusal in catalogue.refused
    )


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What differs between two records of a plan, in words; None where they are the same."""
    old, new = (dict(_flat(record["settings"])) for record in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            return f"{name} was {old.get(name)} and now is {new.get(name)}"
    for modality in sorted(before["scenes"].keys() | now["scenes"].keys()):
        was, are = before["scenes"].get(modality, {}), now["scenes"].get(modality, {})
        for words, names in (
            ("are new", are.keys() - was.keys()),
            ("are gone", was.keys() - are.keys()),
            ("have changed", {name for name in was.keys() & are.keys() if was[name] != are[name]}),
        ):
            if names:
                listed = ", ".join(sorted(names)[:_NUM_LISTED]) + (", ..." if len(names) > _NUM_LISTED else "")
                return f"{len(names)} {modality} scenes {words} ({listed})"
    return None


def record_of(manifest: Manifest) -> dict[str, Any]:
    """The record of the plan that finished shards were built from."""
    return _record(manifest.settings, manifest.scenes)


def _record(settings: Any, scenes: dict[str, tuple[SceneEntry, ...]]) -> dict[str, Any]:
    digests = {key: {entry.name: entry.digest for entry in entries} for key, entries in scenes.items()}
    return {"settings": settings, "scenes": digests}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _by_modality(scenes: Sequence[Scene]) -> Iterator[tuple[str, list[tuple[Scene, str]]]]:
    """The scenes of each modality that has any, with their short names."""
    for spec in registry.known():
        if found := [scene for scene in scenes if scene.modality == spec.key]:
            yield spec.key, list(zip(found, slugs(scene.name for scene in found), strict=True))


def _cut(scenes: Sequence[tuple[Scene, str]], config: BuildConfig) -> Iterator[tuple[Span, ...]]:
    """Cuts the scenes of a modality into the spans of each unit."""
    grids = [config.tiling.grid(scene.height, scene.width) for scene, _ in scenes]
    for runs in fill_units([(len(grid.row_starts), len(grid.col_starts)) for grid in grids], config.tiles_per_shard):
        spans = []
        for number, rows in runs:
            scene, slug = scenes[number]
            spans.append(Span(scene, number, slug, rows, len(rows) * len(grids[number].col_starts)))
        yield tuple(spans)


def fill_units(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[list[tuple[int, range]]]:
    """Fills units with whole rows of tiles, scene after scene.

    Args:
        sizes: Of each scene the rows, and how many tiles there are in a row.
        most: Most tiles of a unit; at least one row goes.

    Yields:
        What goes into each unit: number of a scene, and some of its rows.
    """
    runs: list[tuple[int, range]] = []
    room = most
    for number, (num_rows, row_tiles) in enumerate(sizes):
        row = 0
        while row < num_rows:
            if room < row_tiles and runs:
                yield runs
                runs, room = [], most
            fitting = min(num_rows - row, max(room // row_tiles, 1))
            runs.append((number, range(row, row + fitting)))
            row += fitting
            room -= fitting * row_tiles
    if runs:
        yield runs


def digest_of(scene: Scene) -> str:
    """Changes with what is known of a scene, and for each of its files the size and first, middle and last bytes.

    Masks count, since tiles are dropped by them; one that is missing is told of when it is read. Cheap, so that a
    second run over a large archive is quick, and the same for a copy of the archive.
    """
    known = files.to_dict(scene)
    del known["path"]
    digest = hashlib.sha256(json.dumps(known).encode())
    masks = [path for path in (scene.path / mask.file for mask in scene.masks) if path.is_file()]
    for path in (*scene.files, *masks):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            for start in (0, (size - _DIGEST_SAMPLE) // 2, size - _DIGEST_SAMPLE):
                file.seek(max(start, 0))
                digest.update(file.read(_DIGEST_SAMPLE))
        digest.update(str(size).encode())
    return digest.hexdigest()
