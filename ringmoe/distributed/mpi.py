"""Under mpirun: ranks and a meeting place from MPI itself. The only importer of mpi4py."""

import socket
from functools import cache

from ringmoe.distributed.environment import Place
from ringmoe.errors import ConfigError


@cache
def discover() -> Place:
    """Asks MPI who this process is and agrees with the others on where to meet. Collective.

    MPI is ended again at once, and only the first call asks: it serves to find each other and nothing else. A rank that
    fails later can then end without waiting in MPI's own farewell for ranks that wait for it elsewhere.

    Raises:
        ConfigError: mpi4py is not installed.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ConfigError(
            "mpirun started this process but mpi4py is missing: install it (pip install mpi4py), or use torchrun"
        ) from error
    world = MPI.COMM_WORLD
    neighbours = world.Split_type(MPI.COMM_TYPE_SHARED)
    meeting = bytearray(512)
    if world.rank == 0:
        on_one_machine = neighbours.size == world.size
        text = f"{'127.0.0.1' if on_one_machine else socket.gethostname()} {_free_port()}".encode()
        meeting[: len(text)] = text
    world.Bcast([meeting, MPI.BYTE])
    address, port = meeting.rstrip(b"\0").decode().split()
    place = Place(
        launcher="mpi",
        rank=world.rank,
        local_rank=neighbours.rank,
        size=world.size,
        local_size=neighbours.size,
        address=address,
        port=int(port),
    )
    MPI.Finalize()
    return place


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
