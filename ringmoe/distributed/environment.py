"""Who this process is: rank, world and meeting place, as whatever started it says in the environment.

Understood are torchrun and the ``deepspeed`` launcher (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), Slurm's
srun (SLURM_*), Open MPI's mpirun (OMPI_*, the rest asked through mpi4py) and nothing at all, which is one process.
What is said must be complete and consistent: half a world would wait for the other half forever.
"""

import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ringmoe.errors import ConfigError

Launcher = Literal["none", "torchrun", "deepspeed", "slurm", "mpi", "variables"]

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of this process among the ranks of its job.

    Attributes:
        launcher: What started it; ``variables`` where RANK and its companions were set by something unknown.
        rank: Number of this process in the job.
        local_rank: Number of this process on its machine.
        size: Processes of the job.
        local_size: Processes of the job on this machine.
        address: Host of rank 0.
        port: TCP port at which rank 0 is met.
    """

    launcher: Launcher = "none"
    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        """Checks that the numbers can be true together.

        Raises:
            ConfigError: A rank outside its world.
        """
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.local_size <= self.size):
            raise ConfigError(
                f"{self.launcher} says rank {self.rank} of {self.size} and local rank {self.local_rank} of "
                f"{self.local_size}: these contradict each other; look in the environment for RANK, LOCAL_RANK and "
                "WORLD_SIZE left over from another job"
            )

    def variables(self) -> dict[str, str]:
        """The same as environment variables, for libraries that read those. A process alone has only a local rank."""
        if self.launcher == "none":
            return {"LOCAL_RANK": "0"}
        values = (self.rank, self.local_rank, self.size, self.address, self.port)
        return {name: str(value) for name, value in zip(_VARIABLES, values, strict=True)}


def find_place(environ: Mapping[str, str]) -> Place:
    """Reads the place of this process from its environment; under mpirun, asks MPI.

    Explicit variables win over MPI, and MPI over Slurm: torchrun and mpirun may both run inside a Slurm job.

    Raises:
        ConfigError: The environment is incomplete or contradicts itself.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE")):
        return _from_variables(environ)
    if "OMPI_COMM_WORLD_SIZE" in environ:
        from ringmoe.distributed.mpi import discover

        return discover()
    if "SLURM_JOB_ID" in environ:
        return _from_slurm(environ)
    return Place()


def take_local_rank(arguments: Sequence[str], environ: MutableMapping[str, str] | None = None) -> list[str]:
    """Command-line arguments without ``--local_rank``, which the ``deepspeed`` launcher adds for every rank.

    The environment says the same already, and the option's default must be what the environment says, never 0.

    Args:
        arguments: The arguments of a launcher file.
        environ: Where LOCAL_RANK is looked up, and set if it is missing; the process' own environment by default.

    Raises:
        ConfigError: The argument and the environment differ.
    """
    environ = os.environ if environ is None else environ
    rest: list[str] = []
    given: str | None = None
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("--local_rank", "--local-rank"):
            rest.append(word)
            continue
        given = value if equals else next(words, "")
    if given is not None and environ.setdefault("LOCAL_RANK", given) != given:
        raise ConfigError(
            f"--local_rank {given} but LOCAL_RANK={environ['LOCAL_RANK']}: leave the option out, the launcher sets it"
        )
    return rest


def num_threads(place: Place, environ: Mapping[str, str], cores: int) -> int | None:
    """Threads that one rank should compute with.

    Args:
        place: Place of the rank.
        environ: Its environment.
        cores: Cores that its process may use.

    Returns:
        Its fair share of the cores, at least 1; None where the user has chosen with OMP_NUM_THREADS.
    """
    if "OMP_NUM_THREADS" in environ:
        return None
    if place.launcher == "slurm" and "SLURM_CPUS_PER_TASK" in environ:
        return _number(environ, "SLURM_CPUS_PER_TASK")
    return max(1, cores // place.local_size)


def first_host(nodes: str) -> str:
    """First host of Slurm's compressed list: ``node[003-006,010],gpu1`` begins with ``node003``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if not first:
        raise ConfigError(f"SLURM_JOB_NODELIST is {nodes!r}: expected a list of hosts like node[01-04]")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def _from_variables(environ: Mapping[str, str]) -> Place:
    missing = [name for name in _VARIABLES if name not in environ]
    if missing:
        present = [name for name in _VARIABLES if name in environ]
        raise ConfigError(
            f"{', '.join(present)} set but not {', '.join(missing)}: start the ranks with torchrun, deepspeed, srun or "
            "mpirun, or set all five; for a single process unset them all"
        )
    size = _number(environ, "WORLD_SIZE")
    launcher: Launcher = "variables"
    local_size = size
    if "TORCHELASTIC_RUN_ID" in environ:
        launcher, local_size = "torchrun", _number(environ, "LOCAL_WORLD_SIZE")
    elif "CROSS_SIZE" in environ:  # how many machines, from DeepSpeed's launcher alone
        launcher, local_size = "deepspeed", _number(environ, "LOCAL_SIZE")
    return Place(
        launcher=launcher,
        rank=_number(environ, "RANK"),
        local_rank=_number(environ, "LOCAL_RANK"),
        size=size,
        local_size=local_size,
        address=environ["MASTER_ADDR"],
        port=_number(environ, "MASTER_PORT"),
    )


def _from_slurm(environ: Mapping[str, str]) -> Place:
    job = _number(environ, "SLURM_JOB_ID")
    if "SLURM_STEP_NUM_TASKS" not in environ:
        if _number(environ, "SLURM_NTASKS", 1) > 1:
            raise ConfigError(
                f"this is the batch script of Slurm job {job}, not one of its {environ['SLURM_NTASKS']} tasks: start "
                "the program with srun, as the scripts in launcher/slurm do"
            )
        return Place()
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    # one port for all tasks of a step, another for the next step, below the range that the kernel hands out
    port = 10000 + (17 * job + _number(environ, "SLURM_STEP_ID", 0)) % 20000
    return Place(
        launcher="slurm",
        rank=_number(environ, "SLURM_PROCID"),
        local_rank=_number(environ, "SLURM_LOCALID"),
        size=_number(environ, "SLURM_STEP_NUM_TASKS"),
        local_size=_tasks_of_node(environ),
        address=environ.get("MASTER_ADDR") or first_host(nodes),
        port=_number(environ, "MASTER_PORT", port),
    )


def _tasks_of_node(environ: Mapping[str, str]) -> int:
    """Tasks of this step on this node; Slurm writes ``2(x3),1`` for three nodes of two and one of one."""
    counts: list[int] = []
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}: expected counts like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _number(environ, "SLURM_NODEID")
    if node >= len(counts):
        raise ConfigError(f"SLURM_NODEID is {node} but SLURM_STEP_TASKS_PER_NODE names {len(counts)} nodes")
    return counts[node]


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} is {text!r} in the environment: expected a number")
    return int(text)
