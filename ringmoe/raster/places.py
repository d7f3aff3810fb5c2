"""Places: scenes of one piece of ground, and the windows that are cut from all of them at once.

Scenes belong to one place where a declaration says so, or where their reference system and the corners of their
ground are the same. Their pixels must divide into each other: windows are counted in pixels of the coarsest scene, and
those of a scene that is ``ratio`` times as fine are ``ratio`` times as wide. Nothing is resampled: scenes that do not
fit are refused in words.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from ringmoe import modality as registry
from ringmoe.batch import Tile
from ringmoe.errors import SceneError
from ringmoe.raster.quality import QualityConfig
from ringmoe.raster.read import Candidate, iter_tiles
from ringmoe.raster.scene import Scene, Transform
from ringmoe.raster.tiling import Split, TilingConfig

_MOST_BYTES = 1 << 30  # of one row of windows of one scene
_SLACK = 0.01  # pixels that the corners of two scenes of one place may lie apart
_NUM_LISTED = 3
_WARP = "Warp one onto the grid of the other first (gdalwarp -t_srs ... -te ... -tr ...)"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A scene of a place.

    Attributes:
        name: Unique in the place: as declared, else the modality, with the date where the place has several scenes of
            it ("ms.2021-05-03"). In lower case: webdataset lowers what stands behind a sample's key.
        scene: The scene.
        ratio: Its pixels along one pixel of the place.
    """

    name: str
    scene: Scene
    ratio: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Scenes of one piece of ground.

    Attributes:
        name: As declared, else the name of its first scene.
        members: At least two, sorted by name.
        height: Rows of the coarsest scene: the pixels of the place.
        width: Columns of the coarsest scene.
    """

    name: str
    members: tuple[Member, ...]
    height: int
    width: int

    def without(self, scenes: Collection[str]) -> "Place":
        """The place without some scenes; its pixels stay the same."""
        return replace(self, members=tuple(member for member in self.members if member.scene.name not in scenes))


@dataclass(frozen=True)
class LeftOut:
    """A scene that is in no place.

    Attributes:
        scene: The scene.
        code: Short word for counting.
        message: Why, and what to do.
    """

    scene: Scene
    code: str
    message: str


@dataclass(frozen=True)
class Window:
    """One position of a place and what became of it in each of its scenes.

    Attributes:
        row: First row, pixels of the place.
        col: First column, pixels of the place.
        split: Side of the hold-out border; None on the border itself.
        tiles: Tile of each member that the rules let pass, in the order of the members. Pixels are views of what was
            read; copy what is to be kept.
        failed: Rule that each of the others broke.
    """

    row: int
    col: int
    split: Split | None
    tiles: dict[str, Tile]
    failed: dict[str, str]


class BrokenMemberError(SceneError):
    """Raised where a scene of a place turns out to be damaged; ``scene`` is the scene."""

    def __init__(self, scene: Scene, message: str) -> None:
        super().__init__(message)
        self.scene = scene


class _MisfitError(Exception):
    """Raised inside this module where scenes make no place."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def find_places(
    scenes: Sequence[Scene], tile: int, min_members: int | None = None
) -> tuple[list[Place], list[LeftOut]]:
    """Finds the scenes that belong together.

    Args:
        scenes: Recognised scenes.
        tile: Side of a window in pixels of the coarsest scene of its place.
        min_members: Fewest members of a place; None for two.

    Returns:
        The places sorted by name, and the scenes that are in none, with the reason.
    """
    found: dict[tuple[object, ...], list[Scene]] = {}
    for scene in sorted(scenes, key=lambda scene: scene.name):
        found.setdefault(_key(scene), []).append(scene)
    places: list[Place] = []
    left_out: list[LeftOut] = []
    for together in found.values():
        name = together[0].place or together[0].name
        try:
            places.append(_place(name, together, tile, min_members or 2))
        except _MisfitError as misfit:
            left_out += [LeftOut(scene, misfit.code, misfit.message) for scene in together]
    return sorted(places, key=lambda place: place.name), left_out


def iter_windows(
    place: Place, tiling: TilingConfig, quality: QualityConfig, *, rows: range | None = None
) -> Iterator[Window]:
    """Every window of a place once, row by row; all its scenes are read side by side, each block once.

    Args:
        place: The place.
        tiling: Side and stride of the windows in pixels of the place, and the share that is held out.
        quality: Which tiles are dropped; asked of each scene by itself.
        rows: Indices into the rows of windows; None for all.

    Raises:
        BrokenMemberError: A scene is cut off or damaged.
    """
    grid = tiling.grid(place.height, place.width)
    names = [member.name for member in place.members]
    for candidates in zip(*(_candidates(member, tiling, quality, rows) for member in place.members), strict=True):
        ratio = place.members[0].ratio
        row, col = candidates[0].row // ratio, candidates[0].col // ratio
        told = dict(zip(names, candidates, strict=True))
        yield Window(
            row=row,
            col=col,
            split=grid.split(row),
            tiles={name: found.tile for name, found in told.items() if found.tile is not None},
            failed={name: str(found.reason) for name, found in told.items() if found.tile is None},
        )


def _candidates(
    member: Member, tiling: TilingConfig, quality: QualityConfig, rows: range | None
) -> Iterator[Candidate]:
    """The tiles of one scene; which side they are on is the place's affair, so none is held out here."""
    own = TilingConfig(tile=tiling.tile * member.ratio, stride=tiling.stride * member.ratio)
    try:
        yield from iter_tiles(member.scene, own, quality, rows=rows)
    except SceneError as error:
        raise BrokenMemberError(member.scene, str(error)) from error


def _key(scene: Scene) -> tuple[object, ...]:
    """What scenes of one place share: the declared name, else the ground; a scene without either stays by itself."""
    if scene.place is not None:
        return ("declared", scene.place)
    if scene.crs is None or scene.transform is None:
        return ("alone", scene.name)
    corners = _corners(scene.transform, scene.height, scene.width)
    # nine digits: a centimetre in metres, a millimetre in degrees; coordinates of other resolutions differ behind them
    return ("ground", scene.crs, *(float(f"{round(float(value), 9):.9g}") for value in corners.ravel()))


def _corners(transform: Transform, height: int, width: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Upper left, upper right and lower left corner in the scene's reference system: (3, 2)."""
    a, b, c, d, e, f = transform
    return np.array([(c, f), (c + a * width, f + d * width), (c + b * height, f + e * height)])


def _place(name: str, scenes: Sequence[Scene], tile: int, fewest: int) -> Place:
    """The place that scenes make.

    Raises:
        _MisfitError: They make none.
    """
    if len(scenes) < 2:
        raise _MisfitError(
            "alone",
            "no other scene is of its place: none has the same reference system and the same corners on the ground, or "
            "is declared to. Declare the place, or build it without --grouped",
        )
    if len(scenes) < fewest:
        raise _MisfitError("alone", f"its place {name} has {len(scenes)} scenes, and {fewest} are asked for")
    coarsest = min(scenes, key=lambda scene: (scene.height * scene.width, scene.name))
    named = zip(_names(name, scenes), scenes, strict=True)
    members = [Member(name=key, scene=scene, ratio=_ratio(scene, coarsest)) for key, scene in named]
    for member in members:
        _check_size(member, tile)
    return Place(
        name=name,
        members=tuple(sorted(members, key=lambda member: member.name)),
        height=coarsest.height,
        width=coarsest.width,
    )


def _names(place: str, scenes: Sequence[Scene]) -> list[str]:
    """A name for each scene.

    Raises:
        _MisfitError: Two would have the same.
    """
    undeclared = Counter(scene.modality for scene in scenes if scene.member is None)
    dates = Counter((scene.modality, _date(scene)) for scene in scenes if scene.member is None)
    names = []
    for scene in scenes:
        if scene.member is not None:
            names.append(scene.member)
        elif undeclared[scene.modality] == 1:
            names.append(scene.modality.lower())
        else:
            day = _date(scene)
            when = day if dates[scene.modality, day] == 1 else _date(scene, with_time=True)
            names.append(f"{scene.modality.lower()}.{when}")
    twice = [scene.name for scene, name in zip(scenes, names, strict=True) if names.count(name) > 1]
    unknown = [scene.name for scene, name in zip(scenes, names, strict=True) if name.endswith(".")]
    if twice or unknown:
        what = "were taken at the same time or bear the same name" if twice else "do not say when they were taken"
        raise _MisfitError(
            "conflict",
            f"place {place}: {_listed(twice or unknown)} {what}, so they cannot be told apart. Declare `acquired` or "
            "`member` of each",
        )
    return names


def _date(scene: Scene, *, with_time: bool = False) -> str:
    """Day of acquisition, with the time where it is asked for; empty where it is not known."""
    try:
        taken = datetime.fromisoformat(scene.acquired or "")
    except ValueError:
        return ""
    return f"{taken:%Y-%m-%dt%H%M%S}" if with_time else taken.date().isoformat()


def _ratio(scene: Scene, coarsest: Scene) -> int:
    """Pixels of a scene along one of the coarsest.

    Raises:
        _MisfitError: They do not divide into each other, or lie on other ground.
    """
    ratio = scene.height // coarsest.height
    if (scene.height, scene.width) != (coarsest.height * ratio, coarsest.width * ratio):
        raise _MisfitError(
            "not_aligned",
            f"{scene.name} has {scene.height} x {scene.width} pixels, and {coarsest.name} of the same place has "
            f"{coarsest.height} x {coarsest.width}: they do not divide by one whole number. {_WARP}",
        )
    if scene.transform is not None and coarsest.transform is not None:
        here = _corners(scene.transform, scene.height, scene.width)
        there = _corners(coarsest.transform, coarsest.height, coarsest.width)
        pixel = float(np.abs(here[1:] - here[0]).max()) / max(scene.height, scene.width)
        if scene.crs != coarsest.crs or float(np.abs(here - there).max()) > _SLACK * pixel:
            raise _MisfitError(
                "not_aligned",
                f"{scene.name} and {coarsest.name} are declared to be of one place, but their reference systems or the "
                f"corners of their ground differ. {_WARP}",
            )
    return ratio


def _check_size(member: Member, tile: int) -> None:
    """Refuses windows that would not fit into memory.

    Raises:
        _MisfitError: One row of windows of a scene is too large.
    """
    scene, side = member.scene, tile * member.ratio
    channels = registry.get(scene.modality).num_channels
    if (needed := channels * scene.width * side * np.dtype(scene.dtype).itemsize) > _MOST_BYTES:
        raise _MisfitError(
            "too_large",
            f"{scene.name}: a window of {tile} pixels of its place is {side} of its own, and one row of them takes "
            f"{needed:,} bytes; {_MOST_BYTES:,} are allowed. Take a smaller --tile",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return ", ".join(names[:_NUM_LISTED]) + more
