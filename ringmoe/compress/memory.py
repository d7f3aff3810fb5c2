"""Memory: what there is, and words where it is not enough."""

from collections.abc import Iterator
from pathlib import Path

from ringmoe.checkpoint.disk import readable_size
from ringmoe.errors import ConfigError

# where control groups lie, and what they are allowed and use: version 2, version 1
_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_CACHES = ("inactive_file", "active_file")  # pages of files count as used, but are given back when memory is short


def require_memory(what: str, needed: int) -> None:
    """Refuses what would not fit.

    Args:
        what: What needs the memory, for the message.
        needed: Bytes.

    Raises:
        ConfigError: Less is available.
    """
    available = available_bytes()
    if available is not None and needed > available:
        raise ConfigError(
            f"{what}: about {readable_size(needed)} of memory are needed, {readable_size(available)} are available; "
            "use fewer --calibration-tiles or options, or a larger machine"
        )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be had without swapping: the machine's, or what a container's or job's control group leaves.

    Args:
        root: Where the system tells of itself.

    Returns:
        Bytes; None where the system does not tell.
    """
    return min((*_of_machine(root), *_of_groups(root)), default=None)


def _of_machine(root: Path) -> Iterator[int]:
    fields = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo"))
    if "MemAvailable" in fields:
        yield int(fields["MemAvailable"].split()[0]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What is left to the group of this process and to each around it that has a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in _GROUPS.keys() & set(controllers.split(",")):
            place, limit, usage = _GROUPS[controller]
            group = Path(path.lstrip("/"))
            for folder in (root / place / each for each in (group, *group.parents)):
                allowed, used = _lines(folder / limit), _lines(folder / usage)
                if allowed and used and allowed[0] != "max":
                    yield max(0, int(allowed[0]) - int(used[0]) + _cached(folder))


def _cached(folder: Path) -> int:
    fields = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
    return sum(int(fields.get(f"total_{name}", fields.get(name, 0))) for name in _CACHES)


def _lines(path: Path) -> list[str]:
    """The lines of a file of the system; none where it is not there, or not for us to read."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
