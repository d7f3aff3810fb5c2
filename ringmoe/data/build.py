"""Raw scenes to a folder of shards: plan, build the units, quarantine what breaks, publish.

While it works, everything lies in ``OUT/.building``; the manifest is written last. So a folder with a manifest is
whole, and one without is continued by the same command: finished units are kept, and what comes out is the same to the
byte as without the interruption, for any number of workers, ranks or tasks.

A scene that turns out to be damaged while it is read is quarantined whole: the units that it has a part in are built
again without it, and its error stands in the manifest. One that was named itself ends the build.

Who builds may be a pool of local processes (``pool``), the ranks of a job (``team``), or tasks that never meet, each of
which builds its share (``build_share``): there whoever finishes last sees that nothing is missing, and publishes.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ringmoe.config import files
from ringmoe.data.duplicates import hashing, without_duplicates
from ringmoe.data.entries import RefusedFile
from ringmoe.data.layout import MANIFEST
from ringmoe.data.manifest import Manifest, write_file
from ringmoe.data.places import make_place_plan, open_folder
from ringmoe.data.plan import BuildConfig, Plan, Unit, make_plan, record_of
from ringmoe.data.pool import run_units
from ringmoe.data.publish import publish
from ringmoe.data.team import Team, TeamWork
from ringmoe.data.unit import UnitResult, load_result
from ringmoe.data.workfolder import check_same, publishing, remove_work, work_folder
from ringmoe.errors import ConfigError, SceneError, ShardError
from ringmoe.raster.declare import Declarations
from ringmoe.raster.recognise import Catalogue, recognise

_QUARANTINE = "quarantine.json"
_ALONE = "--drop-duplicates compares all scenes: build with local --workers, without ranks or shares"


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
_RunUnits = Callable[[Sequence[Unit], Path], Iterator[tuple[Unit, UnitResult]]]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        manifest: The finished folder.
        catalogue: What was recognised.
        num_units: Work units of the plan.
        num_reused: Those of them that were finished before.
    """

    manifest: Manifest
    catalogue: Catalogue
    num_units: int
    num_reused: int


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


@dataclass(frozen=True)
class ShareReport:
    """What a share did that was not the last one.

    Attributes:
        num_units: Work units of the share.
        num_reused: Those of them that were finished before.
        num_left: Units of the plan that others have not finished; zero where another is publishing.
    """

    num_units: int
    num_reused: int
    num_left: int


def build(
    scenes: Sequence[Path],
    out: Path,
    config: BuildConfig,
    *,
    workers: int = 1,
    team: Team | None = None,
    declarations: Declarations | None = None,
    modality: str | None = None,
    calibrate: bool = True,
    progress: OnProgress | None = None,
) -> BuildReport:
    """Builds shards from scenes, or continues, or says that there is nothing left to do.

    Args:
        scenes: Files and folders of scenes.
        out: Folder of the shards: new, empty, or of an earlier run of the same build.
        config: How tiles are cut, which are dropped, and how many go into a shard.
        workers: Local processes. The result is the same for any number.
        team: Processes of a job that this one leads; they build with it (``team.help_build``).
        declarations: What is known of scenes beside what the files say.
        modality: The modality of all scenes, where the files do not say it.
        calibrate: Whether radar products are read as calibrated amplitudes; else their numbers stay as they are.
        progress: Told how far the build is.

    Raises:
        SceneError: There is no usable scene, a scene that was named itself is damaged, or no tile is kept.
        ShardError: ``out`` holds other things or shards of another build, is damaged, or cannot be written.
    """
    if team is not None and config.quality.drop_duplicates:
        raise ConfigError(_ALONE)
    catalogue = recognise(
        scenes, declarations=declarations, modality=modality, tile=config.tiling.tile, calibrate=calibrate
    )
    plan = _plan(catalogue, config)
    if (manifest := _finished(plan, out)) is None:
        with work_folder(out, plan) as work:
            run = partial(run_units, workers=workers) if team is None else TeamWork(team, catalogue.scenes, workers)
            if config.quality.drop_duplicates:
                hashes = _Units(hashing(plan), work)
                _build_rounds(hashes, run, catalogue.named, _half(progress, 0))
                plan, progress = without_duplicates(plan, work, hashes.quarantined), _half(progress, 1)
            units = _Units(plan, work)
            num_reused = len(units.finished)
            manifest = _conclude(units, run, catalogue.named, out, progress)
        remove_work(out)
        return BuildReport(manifest, catalogue, len(plan.units), num_reused)
    return BuildReport(manifest, catalogue, len(plan.units), len(plan.units))


def build_share(
    scenes: Sequence[Path],
    out: Path,
    config: BuildConfig,
    share: Share,
    *,
    workers: int = 1,
    declarations: Declarations | None = None,
    modality: str | None = None,
    calibrate: bool = True,
    progress: OnProgress | None = None,
) -> BuildReport | ShareReport:
    """Builds one share, at the same time as others or not; the one that finds nothing missing behind it publishes.

    A share that died is built again, in any division: all units that are not finished are shared out anew.

    Args:
        scenes: As for ``build``, and the same for all shares, as all that follows but ``share`` and ``workers``.
        out: Folder of the shards, on a file system that all see.
        config: As for ``build``.
        share: Which of how many.
        workers: Local processes.
        declarations: As for ``build``.
        modality: As for ``build``.
        calibrate: As for ``build``.
        progress: Told how far this share is, and what comes behind it for the last one.

    Raises:
        SceneError: As for ``build``. That of a scene or of the tiles: for whoever finishes last.
        ShardError: As for ``build``.
    """
    if config.quality.drop_duplicates:
        raise ConfigError(_ALONE)
    catalogue = recognise(
        scenes, declarations=declarations, modality=modality, tile=config.tiling.tile, calibrate=calibrate
    )
    plan = _plan(catalogue, config)
    run = partial(run_units, workers=workers)
    mine = plan.units[share.number :: share.count]
    num_reused = len(mine)
    try:
        manifest = _finished(plan, out)
        if manifest is None:
            with work_folder(out, plan, shared=True) as work:
                units = _Units(plan, work)
                num_reused = sum(unit.name in units.finished for unit in mine)
                units.run(run, mine, progress)
                # First a name in the folder, then the look: NFS may show what it showed before, but not to one that has
                # changed the folder since others have. So of those that finish at once the last sees all the others.
                write_file(work, f"share-{share.number}-of-{share.count}", b"")
                units.look()
                if units.pending:
                    manifest = _finished(plan, out)
                else:  # only then the lock: it would be kept from another that finds nothing missing meanwhile
                    with publishing(work) as is_ours:
                        if is_ours:
                            manifest = _conclude(units, run, catalogue.named, out, progress)
                        else:
                            manifest = _finished(plan, out)
                if manifest is None:
                    return ShareReport(len(mine), num_reused, len(units.pending))
            remove_work(out)
    except ShardError:
        # another has published meanwhile, which also takes away the folder that this one looked for work in
        manifest = _finished(plan, out)
        if manifest is None:
            raise
    return BuildReport(manifest, catalogue, len(mine), num_reused)


def _plan(catalogue: Catalogue, config: BuildConfig) -> Plan:
    return make_place_plan(catalogue, config) if config.grouped else make_plan(catalogue, config)


def _finished(plan: Plan, out: Path) -> Manifest | None:
    """The finished folder of a plan; None where it is not."""
    if not (out / MANIFEST).exists():
        return None
    manifest = open_folder(out)
    check_same(plan, record_of(manifest), f"{out} holds shards of another build")
    manifest.check_sizes(manifest.all_files)
    remove_work(out)  # a run was killed just before it would have done this
    return manifest


def _conclude(
    units: "_Units", run: _RunUnits, named: Collection[str], out: Path, progress: OnProgress | None
) -> Manifest:
    """Builds what is missing and publishes.

    Raises:
        SceneError: A broken scene is one of those that were named themselves, or no tile is kept.
    """
    _build_rounds(units, run, named, progress)
    results = {
        key: [units.finished[unit.name] for unit in units.plan.units if unit.modality == key]
        for key in dict.fromkeys(unit.modality for unit in units.plan.units)
    }
    if not any(result.shards for found in results.values() for result in found):
        raise SceneError(_nothing_kept(results, units.quarantined))
    return publish(units.plan, results, tuple(units.quarantined.values()), units.work, out)


def _build_rounds(units: "_Units", run: _RunUnits, named: Collection[str], progress: OnProgress | None) -> None:
    """Builds what is missing, in rounds.

    A round runs to its end before the scenes that it found broken are quarantined, so its outcome does not depend on
    which unit is first.

    Raises:
        SceneError: A broken scene is one of those that were named themselves.
    """
    units.run(run, units.plan.units, progress)
    while units.quarantine(named):
        units.run(run, units.plan.units, progress)


def _half(progress: OnProgress | None, number: int) -> OnProgress | None:
    """Tells how far the first (0) or second (1) of two passes is, as a part of both."""
    if progress is None:
        return None
    return lambda at: progress(replace(at, done=number * at.total + at.done, total=2 * at.total))


@dataclass
class _Units:
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

    def run(self, run: _RunUnits, units: Iterable[Unit], progress: OnProgress | None) -> None:
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
        """Notes scenes that were found broken and forgets the units that they have a part in.

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
        if any(unit.duplicates for unit in self.plan.units):  # what was a duplicate of a broken scene comes back
            self.plan = without_duplicates(self.plan, self.work, self.quarantined)
        for unit in self.plan.units:
            for scene in unit.scenes:
                if scene.name in self.quarantined and scene.name in named:
                    raise SceneError(f"{scene.path}: {self.quarantined[scene.name].message}")
            result, wanted = self.finished.get(unit.name), unit.without(self.quarantined)
            if result is not None and result.stem != wanted.stem:
                del self.finished[unit.name]
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


def _nothing_kept(results: dict[str, list[UnitResult]], quarantined: dict[str, RefusedFile]) -> str:
    """The message for scenes of which nothing is left."""
    dropped = sum((Counter(result.dropped) for found in results.values() for result in found), Counter[str]())
    reasons = [f"{num} windows dropped as {reason}" for reason, num in dropped.most_common()]
    reasons += [f"{scene.name} is broken: {scene.message}" for scene in quarantined.values()]
    return f"not a single tile is left: {'; '.join(reasons)}"
