"""Rounds of a build: units are built, scenes that were found broken are quarantined, and what had a part in them again.

A round runs to its end before the scenes that it found broken are quarantined, so its outcome does not depend on which
unit is first.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ringmoe import counter
from ringmoe.config import files
from ringmoe.data.duplicates import hashing, without_duplicates
from ringmoe.data.entries import RefusedFile
from ringmoe.data.manifest import write_file
from ringmoe.data.plan import Plan, Unit
from ringmoe.data.pool import in_runs, run_units
from ringmoe.data.unit import UnitResult, load_result
from ringmoe.errors import ConfigError, SceneError

_QUARANTINE = "quarantine.json"


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        done: Windows that are done.
        total: All there are.
        quarantined: Scenes that turned out to be broken.
    """

    done: int
    total: int
    quarantined: int = 0


OnProgress = Callable[[BuildProgress], None]

RunUnits = Callable[[Sequence[Unit], Path], Iterator[tuple[Unit, UnitResult]]]
"""Builds units and yields each with its result as soon as it is known, in any order."""


@dataclass(frozen=True)
class Share:
    """One of ``count`` shares of a build, from 0.

    Attributes:
        number: Which.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Reads ``3/16``: the fourth of sixteen shares.

        Raises:
            ConfigError: It is nothing like this.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            raise ConfigError(f"a share is a number from 0 and how many there are, like 0/16 to 15/16; it is {text!r}")
        return cls(int(number), int(count))

    def of(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """The units of this share."""
        return [unit for run in in_runs(units, self.count)[self.number :: self.count] for unit in run]

    def first(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """All units, those of this share first; the others in an order of its own, not to meet those who help, too."""
        mine = {unit.name: unit for unit in self.of(units)}
        yield from mine.values()
        others = (unit for unit in units if unit.name not in mine)
        yield from sorted(others, key=lambda unit: counter.key("share", self.number, unit.name))


@dataclass
class Units:
    """Which units are built, and which scenes are quarantined.

    Attributes:
        plan: All of them.
        work: Folder of their files.
        finished: Result of each finished unit by its name.
        broken: The scene that each other built unit found broken.
        quarantined: Broken scenes by name, which all units are built without.
    """

    plan: Plan
    work: Path
    finished: dict[str, UnitResult] = field(default_factory=dict)
    broken: dict[str, RefusedFile] = field(default_factory=dict)
    quarantined: dict[str, RefusedFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Finds what earlier runs did."""
        if (path := self.work / _QUARANTINE).exists():
            found = [files.from_dict(RefusedFile, entry, where=str(path)) for entry in json.loads(path.read_bytes())]
            self.quarantined = {entry.name: entry for entry in found}
        self.look()

    @property
    def pending(self) -> list[Unit]:
        """What is not built, without the scenes that are quarantined."""
        return self._pending(self.plan.units)

    def look(self) -> None:
        """Finds what others have built."""
        for unit in self.pending:
            if (result := load_result(self.work, unit)) is not None:
                self._take(result)

    def run(self, run: RunUnits, units: Iterable[Unit], progress: OnProgress | None) -> None:
        """Builds those of some units that are not built, and says how far these units are."""
        units = tuple(units)
        pending = self._pending(units)
        total = sum(unit.num_windows for unit in units)
        done = total - sum(unit.num_windows for unit in pending)
        if not pending:
            return
        tell = progress or (lambda _: None)
        tell(self._progress(done, total))
        for unit, result in run(pending, self.work):
            self._take(result)
            done += unit.num_windows
            tell(self._progress(done, total))

    def quarantine(self, named: Collection[str]) -> bool:
        """Notes scenes that were found broken.

        Returns:
            Whether there were any.

        Raises:
            SceneError: One of them was named itself.
        """
        if not self.broken:
            return False
        for name in sorted(self.broken):
            self.quarantined.setdefault(self.broken[name].name, self.broken[name])
        self.broken.clear()
        for scene in (scene for unit in self.plan.units for scene in unit.scenes):
            if scene.name in self.quarantined and scene.name in named:
                raise SceneError(f"{scene.path}: {self.quarantined[scene.name].message}")
        self.quarantined = dict(sorted(self.quarantined.items()))
        write_file(self.work, _QUARANTINE, json.dumps(files.to_dict(list(self.quarantined.values()))).encode())
        return True

    def _pending(self, units: Iterable[Unit]) -> list[Unit]:
        built = self.finished.keys() | self.broken.keys()
        return [unit.without(self.quarantined) for unit in units if unit.name not in built]

    def _take(self, result: UnitResult) -> None:
        if result.broken is None:
            self.finished[result.name] = result
        else:
            self.broken[result.name] = result.broken

    def _progress(self, done: int, total: int) -> BuildProgress:
        found = {scene.name for scene in self.broken.values()}
        return BuildProgress(done, total, len(found | self.quarantined.keys()))


def build_rounds(
    units: Units, run: RunUnits, named: Collection[str], progress: OnProgress | None, share: Share | None = None
) -> Units:
    """Builds what is missing, round after round, until a round finds no scene broken.

    Args:
        units: What to build.
        run: Who builds.
        named: Scenes that were named themselves.
        progress: Told how far the round is.
        share: Whose units come first, where others build the same at the same time.

    Returns:
        The units of the last round, all of them finished.

    Raises:
        SceneError: A broken scene is one of those that were named themselves.
    """
    while True:
        plan = units.plan
        units.run(run, plan.units if share is None else share.first(plan.units), progress)
        if not units.quarantine(named):
            return units
        if plan.config.quality.drop_duplicates and not plan.units[0].hashes_only:
            plan = mark_duplicates(plan, units.work, run, named, None)  # duplicates of a broken scene come back
        units = Units(plan, units.work)


def mark_duplicates(
    plan: Plan,
    work: Path,
    run: RunUnits,
    named: Collection[str],
    progress: OnProgress | None,
    share: Share | None = None,
) -> Plan:
    """Looks for near-duplicates in a pass over all units.

    Args:
        plan: What is to be built.
        work: Folder of the units' files.
        run: As for ``build_rounds``, like all that follows.
        named: See there.
        progress: See there.
        share: See there.

    Returns:
        The plan whose units know their near-duplicates.

    Raises:
        SceneError: As of ``build_rounds``.
    """
    hashes = Units(replace(plan, units=tuple(map(hashing, plan.units))), work)
    hashes = build_rounds(hashes, run, named, progress, share)
    return without_duplicates(plan, work, hashes.quarantined)


def part_of(progress: OnProgress | None, before: int, total: int) -> OnProgress | None:
    """Tells how far a part of the work is as a part of the whole, of which ``before`` was done before it."""
    if progress is None:
        return None
    return lambda at: progress(replace(at, done=before + at.done, total=total))


def beside_others(units: Sequence[Unit], folder: Path, *, workers: int) -> Iterator[tuple[Unit, UnitResult]]:
    """Builds units like ``run_units``, but those that others have built meanwhile are only looked up."""
    built: list[tuple[Unit, UnitResult]] = []

    def missing() -> Iterator[Unit]:
        for unit in units:
            if (result := load_result(folder, unit)) is None:
                yield unit
            else:
                built.append((unit, result))

    for found in run_units(((unit,) for unit in missing()), folder, workers):
        yield found
        while built:
            yield built.pop()
    yield from built
