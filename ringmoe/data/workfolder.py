"""The folder of an unfinished build: who may work in it, what stays of it, and what is said when it cannot be written.

What lies in it is all that a build knows: the plan that it began with, the files and the result of every unit that is
built, and the scenes that turned out to be broken.
"""

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ringmoe.data.durable import PARTIAL
from ringmoe.data.layout import BUILDING
from ringmoe.data.manifest import write_file
from ringmoe.data.plan import Plan, difference, unit_of_stem
from ringmoe.errors import SceneError, ShardError

_PLAN, _LOCK, _PUBLISHING = "plan.json", "lock", "publishing"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def work_folder(out: Path, plan: Plan, *, shared: bool = False) -> Iterator[Path]:
    """The folder of an unfinished build, locked.

    It stays for the next run when something goes wrong, unless that run could make no use of it.

    Args:
        out: Folder of the shards.
        plan: What is built.
        shared: Others who build their share of the same plan may work in it at the same time.

    Raises:
        ShardError: ``out`` holds other things, another build is at work, or something cannot be written.
    """
    work = out / BUILDING
    try:
        # one look: another that shares the build may make its folder between two
        if out.is_dir() and (names := {path.name for path in out.iterdir()}) and BUILDING not in names:
            raise ShardError(f"{out} is not empty and holds no shards; choose a new or empty folder")
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work / _LOCK, shared=shared) as is_ours:
            if not is_ours:
                raise ShardError(f"another build is at work on {out}; wait for it, or choose another folder")
            if not shared:
                for left in work.glob(f"*{PARTIAL}"):
                    left.unlink()
            if (work / _PLAN).exists():
                check_same(
                    plan, json.loads((work / _PLAN).read_bytes()), f"{out} holds an unfinished build of something else"
                )
            else:
                write_file(work, _PLAN, json.dumps(plan.record()).encode())
            yield work
    except SceneError:
        # not where others are still at work in it, or may be, as without locks: they will find the same
        with suppress(FileNotFoundError), _locked(work / _LOCK, without=not shared) as is_ours:
            if is_ours:
                _remove(out)
        raise
    except OSError as error:
        kept = _kept(work, plan)
        if kept is None and not shared:
            _remove(out)
        raise ShardError(_unwritable(out, error, kept or "nothing was left behind")) from error


@contextmanager
def publishing(work: Path) -> Iterator[bool]:
    """Whether this process is the one to publish; of those that share a folder only one at a time is."""
    with _locked(work / _PUBLISHING) as is_ours:
        yield is_ours


def remove_work(out: Path) -> None:
    """Removes the folder of a build that is published. For when no file in it is open: NFS keeps those."""
    shutil.rmtree(out / BUILDING, ignore_errors=True)


def check_same(plan: Plan, before: dict[str, Any], what: str) -> None:
    """Refuses to go on with what was begun with other settings or scenes.

    Raises:
        ShardError: Something differs; the message says what.
    """
    changed = difference(before, plan.record())
    if changed is not None:
        raise ShardError(f"{what}: {changed}. Choose another folder, or delete this one to build it anew")


@contextmanager
def _locked(path: Path, *, shared: bool = False, without: bool = True) -> Iterator[bool]:
    """Holds a lock, and says whether it could be had; it goes with this process, however that ends.

    Where the file system knows no locks it says ``without``, as a rule that it was had. It only spares work: whatever
    is built or published twice at once is written whole, and the same, by both.
    """
    with path.open("a+b") as lock:  # NFS wants it readable for a shared lock and writable for an exclusive one
        yield take_lock(lock, shared=shared, without=without)


def take_lock(file: IO[Any], *, shared: bool = False, without: bool = True) -> bool:
    """Locks an open file for this process, and says whether it could be had.

    Args:
        file: It is locked until it is closed.
        shared: Others may have it at the same time who also share it.
        without: What to say where the file system knows no locks.

    Raises:
        OSError: The file system failed.
    """
    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return without
    return True


def _remove(out: Path) -> None:
    """Removes an unfinished build, and the folder around it unless it holds something else."""
    remove_work(out)
    with suppress(OSError):
        out.rmdir()


def _kept(work: Path, plan: Plan) -> str | None:
    """What the next run need not do again, in words; None where there is nothing.

    The files are looked at, not the plan's names for them: those change with what a unit is built without.
    """
    done = {unit_of_stem(path.stem) for path in work.glob("*.json")}
    finished = sum(unit.name in done for unit in plan.units)
    hashed = sum(replace(unit, hashes_only=True).name in done for unit in plan.units)
    if finished:
        return f"{finished} of {len(plan.units)} units are finished and kept"
    return f"the hashes of {hashed} of {len(plan.units)} units are kept" if hashed else None


def _unwritable(out: Path, error: OSError, kept: str) -> str:
    """The message for a folder that cannot be written."""
    if error.errno in _NO_SPACE:
        return f"no space left for {out} ({error.strerror}); {kept}. Free some space and run the same command again"
    return f"{out} cannot be written: {error.strerror or error}; {kept}. Mend it and run the same command again"
