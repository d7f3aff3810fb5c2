"""Raw scenes to a folder of shards: plan, build the units, quarantine what breaks, publish.

While it works, everything lies in ``OUT/.building``; the manifest is written last. So a folder with a manifest is
whole, and one without is continued by the same command: finished units are kept, and what comes out is the same to the
byte as without the interruption, for any number of workers, ranks or tasks.

A scene that turns out to be damaged while it is read is quarantined whole: the units that it has a part in are built
again without it, and its error stands in the manifest. One that was named itself ends the build.

Who builds may be a pool of local processes (``pool``), the ranks of a job (``team``), or tasks that never meet, each of
which builds its share (``build_share``): there whoever finishes last sees that nothing is missing, and publishes.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ringmoe.data.entries import RefusedFile
from ringmoe.data.layout import MANIFEST
from ringmoe.data.manifest import Manifest, write_file
from ringmoe.data.places import make_place_plan, open_folder
from ringmoe.data.plan import BuildConfig, Plan, make_plan, record_of
from ringmoe.data.pool import run_all
from ringmoe.data.publish import publish
from ringmoe.data.rounds import (
    OnProgress,
    RunUnits,
    Share,
    Units,
    beside_others,
    build_rounds,
    mark_duplicates,
    part_of,
)
from ringmoe.data.team import Team, TeamWork
from ringmoe.data.unit import UnitResult
from ringmoe.data.workfolder import check_same, publishing, remove_work, work_folder
from ringmoe.errors import SceneError, ShardError
from ringmoe.raster.declare import Declarations
from ringmoe.raster.recognise import Catalogue, recognise


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        manifest: The finished folder.
        catalogue: What was recognised.
        num_units: Work units of the plan.
        num_reused: Those of them that were finished before.
        published: Whether this process wrote the manifest; else it was there already.
    """

    manifest: Manifest
    catalogue: Catalogue
    num_units: int
    num_reused: int
    published: bool


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
    catalogue = recognise(
        scenes, declarations=declarations, modality=modality, tile=config.tiling.tile, calibrate=calibrate
    )
    plan = _plan(catalogue, config)
    if (manifest := _finished(plan, out)) is None:
        with work_folder(out, plan) as work:
            run = partial(run_all, workers=workers) if team is None else TeamWork(team, catalogue.scenes, workers)
            if config.quality.drop_duplicates:
                total = plan.num_windows
                first, progress = part_of(progress, 0, 2 * total), part_of(progress, total, 2 * total)
                plan = mark_duplicates(plan, work, run, catalogue.named, first)
            units = Units(plan, work)
            num_reused = len(units.finished)
            manifest = _conclude(units, run, catalogue.named, out, progress)
        remove_work(out)
        return BuildReport(manifest, catalogue, len(plan.units), num_reused, published=True)
    return BuildReport(manifest, catalogue, len(plan.units), len(plan.units), published=False)


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
        SceneError: As for ``build``. That of a scene or of the tiles: for whoever finishes last, and that of a scene
            for each where near-duplicates are looked for.
        ShardError: As for ``build``.
    """
    catalogue = recognise(
        scenes, declarations=declarations, modality=modality, tile=config.tiling.tile, calibrate=calibrate
    )
    plan = _plan(catalogue, config)
    run = partial(run_all, workers=workers)
    mine = share.of(plan.units)
    num_reused, published = len(mine), False
    try:
        manifest = _finished(plan, out)
        if manifest is None:
            with work_folder(out, plan, shared=True) as work:
                own = progress
                if config.quality.drop_duplicates:
                    passed, total = plan.num_windows, plan.num_windows + sum(unit.num_windows for unit in mine)
                    first, own = part_of(progress, 0, total), part_of(progress, passed, total)
                    together = partial(beside_others, workers=workers)
                    plan = mark_duplicates(plan, work, together, catalogue.named, first, share)
                    mine = share.of(plan.units)
                units = Units(plan, work)
                num_reused = sum(unit.name in units.finished for unit in mine)
                units.run(run, mine, own)
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
                            published = True
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
    return BuildReport(manifest, catalogue, len(mine), num_reused, published)


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


def _conclude(units: Units, run: RunUnits, named: Collection[str], out: Path, progress: OnProgress | None) -> Manifest:
    """Builds what is missing and publishes.

    Raises:
        SceneError: A broken scene is one of those that were named themselves, or no tile is kept.
    """
    units = build_rounds(units, run, named, progress)
    results = {
        key: [units.finished[unit.name] for unit in units.plan.units if unit.modality == key]
        for key in dict.fromkeys(unit.modality for unit in units.plan.units)
    }
    if not any(result.shards for found in results.values() for result in found):
        raise SceneError(_nothing_kept(results, units.quarantined))
    return publish(units.plan, results, tuple(units.quarantined.values()), units.work, out)


def _nothing_kept(results: dict[str, list[UnitResult]], quarantined: dict[str, RefusedFile]) -> str:
    """The message for scenes of which nothing is left."""
    dropped = sum((Counter(result.dropped) for found in results.values() for result in found), Counter[str]())
    reasons = [f"{num} windows dropped as {reason}" for reason, num in dropped.most_common()]
    reasons += [f"{scene.name} is broken: {scene.message}" for scene in quarantined.values()]
    return f"not a single tile is left: {'; '.join(reasons)}"
