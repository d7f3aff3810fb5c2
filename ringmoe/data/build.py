"""Raw scenes to a folder of shards: plan, build the units, quarantine what breaks, publish.

While it works, everything lies in ``OUT/.building``; the manifest is written last. So a folder with a manifest is
whole, and one without is continued by the same command: finished units are kept, and what comes out is the same to the
byte as without the interruption, for any number of workers.

A scene that turns out to be damaged while it is read is quarantined whole: the units that it has a part in are built
again without it, and its error stands in the manifest. One that was named itself ends the build.
"""

import errno
import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringmoe.config import files
from ringmoe.data.layout import BUILDING, MANIFEST
from ringmoe.data.manifest import Manifest, RefusedFile, write_file
from ringmoe.data.places import make_place_plan, open_folder
from ringmoe.data.plan import BuildConfig, Plan, difference, make_plan, record_of
from ringmoe.data.pool import run_units
from ringmoe.data.publish import publish
from ringmoe.data.unit import UnitResult, load_result, result_file
from ringmoe.errors import SceneError, ShardError
from ringmoe.raster.declare import Declarations
from ringmoe.raster.recognise import Catalogue, recognise

_PLAN, _QUARANTINE, _LOCK = "plan.json", "quarantine.json", "lock"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

OnProgress = Callable[[int, int], None]
"""Called with the number of windows that are done and of all there are."""


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


def build(
    scenes: Sequence[Path],
    out: Path,
    config: BuildConfig,
    *,
    workers: int = 1,
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
        declarations: What is known of scenes beside what the files say.
        modality: The modality of all scenes, where the files do not say it.
        calibrate: Whether radar products are read as calibrated amplitudes; else their numbers stay as they are.
        progress: Told how far the build is.

    Raises:
        SceneError: There is no usable scene, a scene that was named itself is damaged, or no tile is kept.
        ShardError: ``out`` holds other things or shards of another build, is damaged, or cannot be written.
    """
    catalogue = recognise(
        scenes, declarations=declarations, modality=modality, tile=config.tiling.tile, calibrate=calibrate
    )
    plan = make_place_plan(catalogue, config) if config.grouped else make_plan(catalogue, config)
    num_units = len(plan.units)
    if (out / MANIFEST).exists():
        manifest = open_folder(out)
        _check_same(plan, record_of(manifest), f"{out} holds shards of another build")
        manifest.check_sizes(manifest.all_files)
        shutil.rmtree(out / BUILDING, ignore_errors=True)  # a run was killed just before it would have done this
        return BuildReport(manifest, catalogue, num_units, num_units)
    with _work_folder(out, plan) as work:
        units = _Units(plan, work, progress)
        num_reused = len(units.results)
        units.build_all(workers, named=catalogue.named)
        results = {
            key: [units.results[unit.name] for unit in plan.units if unit.modality == key]
            for key in dict.fromkeys(unit.modality for unit in plan.units)
        }
        if not any(result.shards for found in results.values() for result in found):
            raise SceneError(_nothing_kept(results, units.quarantined))
        manifest = publish(plan, results, tuple(units.quarantined.values()), work, out)
        shutil.rmtree(work)
    return BuildReport(manifest, catalogue, num_units, num_reused)


class _Units:
    """Which units are finished, and which scenes are quarantined.

    Attributes:
        results: Result of each finished unit by its name.
        quarantined: Broken scenes by name.
    """

    def __init__(self, plan: Plan, work: Path, progress: OnProgress | None) -> None:
        """Finds what an earlier run finished."""
        self._plan = plan
        self._work = work
        self._progress = progress
        self.quarantined: dict[str, RefusedFile] = {}
        if (path := work / _QUARANTINE).exists():
            found = [files.from_dict(RefusedFile, entry, where=str(path)) for entry in json.loads(path.read_bytes())]
            self.quarantined = {entry.name: entry for entry in found}
        loaded = [(unit, load_result(work, unit.without(self.quarantined))) for unit in plan.units]
        self.results = {unit.name: result for unit, result in loaded if result is not None}
        self._num_windows = sum(unit.num_windows for unit in plan.units)
        self._tell(sum(unit.num_windows for unit in plan.units if unit.name in self.results))

    def build_all(self, workers: int, *, named: Collection[str]) -> None:
        """Builds what is not finished, in rounds: each begins with the scenes that the one before found broken.

        A round runs to its end before a scene is quarantined, so its outcome does not depend on which unit is first.

        Raises:
            SceneError: A broken scene is one of those that were named themselves.
        """
        while pending := [unit.without(self.quarantined) for unit in self._plan.units if unit.name not in self.results]:
            done = self._num_windows - sum(unit.num_windows for unit in pending)
            broken: dict[str, RefusedFile] = {}
            for unit, result in run_units(pending, self._work, workers):
                if result.broken is not None:
                    broken[unit.name] = result.broken
                else:
                    self.results[unit.name] = result
                done += unit.num_windows
                self._tell(done)
            if broken:
                self._quarantine([broken[name] for name in sorted(broken)], named)

    def _quarantine(self, broken: Sequence[RefusedFile], named: Collection[str]) -> None:
        """Notes broken scenes and forgets the units that they have a part in."""
        for entry in broken:
            self.quarantined.setdefault(entry.name, entry)
        for unit in self._plan.units:
            for scene in unit.scenes:
                if scene.name in self.quarantined and scene.name in named:
                    raise SceneError(f"{scene.path}: {self.quarantined[scene.name].message}")
            result = self.results.get(unit.name)
            if result is not None and result.excluded != unit.without(self.quarantined).excluded:
                del self.results[unit.name]
        self.quarantined = dict(sorted(self.quarantined.items()))
        write_file(self._work, _QUARANTINE, json.dumps(files.to_dict(list(self.quarantined.values()))).encode())

    def _tell(self, num_done: int) -> None:
        if self._progress is not None:
            self._progress(num_done, self._num_windows)


@contextmanager
def _work_folder(out: Path, plan: Plan) -> Iterator[Path]:
    """The folder of an unfinished build, locked.

    It stays for the next run when something goes wrong, unless that run could make no use of it.

    Raises:
        ShardError: ``out`` holds other things, another build is at work, or something cannot be written.
    """
    work = out / BUILDING
    try:
        if out.is_dir() and not work.exists() and any(out.iterdir()):
            raise ShardError(f"{out} is not empty and holds no shards; choose a new or empty folder")
        work.mkdir(parents=True, exist_ok=True)
        with (work / _LOCK).open("w") as lock:
            _lock(lock.fileno(), out)
            if (work / _PLAN).exists():
                _check_same(
                    plan, json.loads((work / _PLAN).read_bytes()), f"{out} holds an unfinished build of something else"
                )
            else:
                write_file(work, _PLAN, json.dumps(plan.record()).encode())
            yield work
    except SceneError:
        _remove(out)
        raise
    except OSError as error:
        num_finished = sum(1 for unit in plan.units if (work / result_file(unit.name)).exists())
        if num_finished == 0:
            _remove(out)
        raise ShardError(_unwritable(out, error, num_finished, len(plan.units))) from error


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ShardError(f"another build is at work on {out}; wait for it, or choose another folder") from error


def _remove(out: Path) -> None:
    """Removes an unfinished build, and the folder around it unless it holds something else."""
    shutil.rmtree(out / BUILDING, ignore_errors=True)
    with suppress(OSError):
        out.rmdir()


def _check_same(plan: Plan, before: dict[str, Any], what: str) -> None:
    """Refuses to go on with what was begun with other settings or scenes."""
    changed = difference(before, plan.record())
    if changed is not None:
        raise ShardError(f"{what}: {changed}. Choose another folder, or delete this one to build it anew")


def _unwritable(out: Path, error: OSError, num_finished: int, num_units: int) -> str:
    """The message for a folder that cannot be written."""
    kept = f"{num_finished} of {num_units} units are finished and kept" if num_finished else "nothing was left behind"
    if error.errno in _NO_SPACE:
        return f"no space left for {out} ({error.strerror}); {kept}. Free some space and run the same command again"
    return f"{out} cannot be written: {error.strerror or error}; {kept}. Mend it and run the same command again"


def _nothing_kept(results: dict[str, list[UnitResult]], quarantined: dict[str, RefusedFile]) -> str:
    """The message for scenes of which nothing is left."""
    dropped = sum((Counter(result.dropped) for found in results.values() for result in found), Counter[str]())
    reasons = [f"{num} windows dropped as {reason}" for reason, num in dropped.most_common()]
    reasons += [f"{scene.name} is broken: {scene.message}" for scene in quarantined.values()]
    return f"not a single tile is left: {'; '.join(reasons)}"
