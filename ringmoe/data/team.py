"""Building by the ranks of a job: the first plans, watches and publishes; all of them build, it too.

Ranks draw runs of units from one count, so whoever is quicker builds more, and what a unit yields does not depend on
who built it. The team itself, who is there and how they speak to each other, is handed in: this room knows no launcher.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ringmoe.config import files
from ringmoe.data.duplicates import hashing
from ringmoe.data.manifest import write_file
from ringmoe.data.places import cut_places
from ringmoe.data.plan import BuildConfig, Unit, cut_units
from ringmoe.data.pool import in_runs, run_units
from ringmoe.data.unit import UnitResult
from ringmoe.errors import ShardError, TeamError
from ringmoe.raster.scene import Scene

_POLL = 0.05  # seconds


class Team(Protocol):
    """Processes that work together: the first leads, the others help.

    Attributes:
        size: How many there are.
    """

    size: int

    def tell(self, message: str) -> None:
        """Says something to all helpers, which each hear all of it in order. For the first."""

    def hear(self) -> str | None:
        """Waits for what the first says next; None when it needs no more help. For helpers."""

    def draw(self, num: int) -> Iterator[int]:
        """Numbers below ``num``; each goes to one process of the team only. Begins anew with every ``tell``."""

    def report(self, message: str) -> None:
        """Says something to the first. For helpers."""

    def reports(self) -> Iterator[str]:
        """What helpers have reported since it was asked the last time. For the first."""


class TeamWork:
    """Builds units like ``run_units``, by a whole team. For its first process."""

    def __init__(self, team: Team, scenes: Sequence[Scene], workers: int) -> None:
        """Nothing is said to anybody yet.

        Args:
            team: Who builds.
            scenes: All usable scenes.
            workers: Processes that this one adds to the team.
        """
        self._team = team
        self._scenes = scenes
        self._workers = workers

    def __call__(self, units: Sequence[Unit], folder: Path) -> Iterator[tuple[Unit, UnitResult]]:
        """Builds units and yields each with its result as soon as it is known, in any order.

        Raises:
            TeamError: A helper failed.
        """
        # by a file, for there may be hundreds of thousands of units; of a new name, which no machine can have cached
        name = f"round-{secrets.token_hex(4)}.json"
        message = {
            "scenes": files.to_dict(self._scenes),
            "units": {unit.name: unit.duplicates for unit in units},
            "excluded": sorted({scene for unit in units for scene in unit.excluded}),
            "processes": self._team.size * self._workers,
        }
        write_file(folder, name, json.dumps(message).encode())
        self._team.tell(str((folder / name).absolute()))
        by_name = {unit.name: unit for unit in units}
        runs = in_runs(units, self._team.size * self._workers)
        drawn = (runs[number] for number in self._team.draw(len(runs)))
        for unit, result in run_units(drawn, folder, self._workers):
            yield by_name.pop(unit.name), result
            yield from self._reported(by_name)
        while by_name:
            time.sleep(_POLL)
            yield from self._reported(by_name)

    def _reported(self, missing: dict[str, Unit]) -> Iterator[tuple[Unit, UnitResult]]:
        for report in map(json.loads, self._team.reports()):
            if "failed" in report:
                raise TeamError(f"another rank failed: {report['failed']}")
            result = files.from_dict(UnitResult, report["result"], where="result of a helper")
            yield missing.pop(result.name), result


def help_build(team: Team, config: BuildConfig, workers: int) -> None:
    """Builds what the first of the team deals out, until it needs no more help.

    Args:
        team: Who builds.
        config: Settings of the build, the same as those of the first.
        workers: Processes that this one adds to the team.

    Raises:
        ShardError: A worker was killed, or a file cannot be read or written.
        TeamError: The first is gone.
    """
    try:
        while (told := team.hear()) is not None:
            path = Path(told)
            message = json.loads(path.read_bytes())
            cut = cut_places if config.grouped else cut_units
            scenes = [files.from_dict(Scene, scene, where=told) for scene in message["scenes"]]
            by_name = {unit.name: unit for build in cut(scenes, config) for unit in (build, hashing(build))}
            units = [
                replace(by_name[name], duplicates=duplicates).without(message["excluded"])
                for name, duplicates in message["units"].items()
            ]
            runs = in_runs(units, message["processes"])
            drawn = (runs[number] for number in team.draw(len(runs)))
            for _, result in run_units(drawn, path.parent, workers):
                team.report(json.dumps({"result": files.to_dict(result)}))
    except TeamError:
        raise
    except OSError as error:
        failure = ShardError(
            f"{error.filename or 'a file of the build'} cannot be read or written: {error.strerror or error}; what is "
            "finished is kept. Mend it and run the same command again"
        )
        team.report(json.dumps({"failed": str(failure)}))
        raise failure from error
    except Exception as error:  # the first would wait for what never comes
        team.report(json.dumps({"failed": f"{type(error).__name__}: {error}"}))
        raise
