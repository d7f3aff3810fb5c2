"""Where a run keeps its checkpoints: ``RUN/checkpoints/step-00000120`` and ``RUN/checkpoints/latest``.

Whether a checkpoint is complete is told by its manifest alone. ``latest`` names the newest one for people and scripts;
nothing here depends on it, so a lost or damaged pointer costs nothing.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ringmoe.checkpoint.disk import rename, replace_text
from ringmoe.checkpoint.manifest import MANIFEST_FILE
from ringmoe.checkpoint.store import CheckpointReader, remove
from ringmoe.errors import CheckpointError

LATEST_FILE = "latest"
_STEP = re.compile(r"step-\d{8,}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which checkpoints stay when a new one is complete.

    Attributes:
        last: The newest so many, the new one among them.
        every: All whose step is a multiple of this, for ever; 0 for none.
    """

    last: int = 3
    every: int = 0


def folder_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def step_folder(run: Path, step: int) -> Path:
    """The checkpoint after ``step`` optimiser steps."""
    return folder_of(run) / f"step-{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, newest first; whether they are whole is not looked at."""
    found = [path for path in folder_of(run).glob("step-*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def open_checkpoint(path: Path) -> CheckpointReader:
    """Opens a checkpoint, or the newest complete one of a run.

    Args:
        path: The folder of a checkpoint or of a run.

    Raises:
        CheckpointError: Neither the one nor the other, or nothing in it is complete.
    """
    folders = step_folders(path)
    if not folders:
        return CheckpointReader(path)
    troubles = []
    for folder in folders:
        try:
            return CheckpointReader(folder)
        except CheckpointError as error:
            _log.warning("%s. Taking the one before it", error)
            troubles.append(str(error))
    raise CheckpointError(f"{path} holds no complete checkpoint: {'; '.join(troubles)}")


def point_latest(run: Path, folder: Path) -> None:
    """Lets ``latest`` name a checkpoint; a reader sees the old name or the new one."""
    replace_text(folder_of(run) / LATEST_FILE, f"{folder.name}\n")


def recover(run: Path) -> None:
    """Undoes what an interrupted save left half done: puts back what was being replaced, drops what was never finished.

    Only the process that writes the run's checkpoints may call this.
    """
    for aside in folder_of(run).glob("step-*.old"):
        original = aside.with_suffix("")
        if original.exists():
            remove(aside)
        else:
            rename(aside, original)
    for unfinished in folder_of(run).glob("step-*.tmp"):
        remove(unfinished)


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that it neither counts as one of those to keep nor is lost for an inspection."""
    aside = folder.with_suffix(".damaged")
    if aside.exists():
        shutil.rmtree(aside)
    rename(folder, aside)
    return aside


def remove_old(run: Path, kept: Kept) -> None:
    """Deletes checkpoints that are no longer wanted; incomplete folders do not count among the newest."""
    complete = 0
    for folder in step_folders(run):
        is_milestone = kept.every > 0 and step_of(folder) % kept.every == 0
        if complete < kept.last and _is_complete(folder):
            complete += 1
        elif not (is_milestone and (folder / MANIFEST_FILE).exists()):
            remove(folder)


def step_of(folder: Path) -> int:
    """The steps after which a checkpoint was saved, by its folder's name."""
    return int(folder.name.removeprefix("step-"))


def _is_complete(folder: Path) -> bool:
    try:
        CheckpointReader(folder)
    except CheckpointError:
        return False
    return True
