"""The machines that a run is planned for: what one device holds and computes, and how fast it reaches the others."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ringmoe.config import from_dict, load_yaml
from ringmoe.errors import ConfigError

GB = 10**9
Dtype = Literal["bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Devices of one kind in nodes of one kind. Rates are the vendor's; shares say how much of them is reached.

    Attributes:
        name: What it is called in tables.
        devices_per_node: Devices that the fast links join.
        memory_gb: Memory of a device, 10^9 bytes.
        matrix_tflops_bf16: Dense matrix rate of a device in bf16, 10^12 operations a second.
        matrix_tflops_fp32: The same in fp32.
        memory_gb_s: Rate of a device's memory, 10^9 bytes a second.
        intra_gb_s: What a device sends to others of its node, one direction, 10^9 bytes a second.
        inter_gb_s: What a device sends to other nodes, one direction, 10^9 bytes a second.
        host_memory_gb: Memory of a node's host, 10^9 bytes.
        host_gb_s: What a device sends to its host, one direction, 10^9 bytes a second.
        host_memory_gb_s: A device's share in the rate of the host's memory, 10^9 bytes a second.
        intra_latency_us: Time to begin a message inside a node, microseconds.
        inter_latency_us: Time to begin a message to another node, microseconds.
        usable: Share of device and host memory that a plan may fill; context, fragments and what is not counted have
            the rest.
        matrix_share: Share of the matrix rate that products reach.
        traffic_share: Share of the rates of memory and links that is reached.
    """

    name: str
    devices_per_node: int = 8
    memory_gb: float
    matrix_tflops_bf16: float
    matrix_tflops_fp32: float
    memory_gb_s: float
    intra_gb_s: float
    inter_gb_s: float
    host_memory_gb: float = 2000.0
    host_gb_s: float = 32.0
    host_memory_gb_s: float = 30.0
    intra_latency_us: float = 5.0
    inter_latency_us: float = 10.0
    usable: float = 0.9
    matrix_share: float = 0.5
    traffic_share: float = 0.7

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A rate, a size or a share is not positive, or a share is above 1.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise ConfigError(f"cluster {self.name}: {field.name} is {value}; expected more than 0")
        for name in ("usable", "matrix_share", "traffic_share"):
            if getattr(self, name) > 1:
                raise ConfigError(f"cluster {self.name}: {name} is {getattr(self, name)}; a share is at most 1")

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill of a device's memory."""
        return int(self.memory_gb * GB * self.usable)

    def usable_host_bytes(self, devices: int) -> int:
        """What a plan of so many devices may fill of its host's memory for one of them."""
        return int(self.host_memory_gb * GB * self.usable) // min(devices, self.devices_per_node)

    def operations_per_second(self, dtype: Dtype) -> float:
        """The vendor's dense matrix rate of one device."""
        return 1e12 * (self.matrix_tflops_bf16 if dtype == "bf16" else self.matrix_tflops_fp32)


# vendors' data sheets: dense rates without sparsity, NVLink and InfiniBand (one port for each device) one way
CLUSTERS = {
    cluster.name: cluster
    for cluster in (
        Cluster(
            name="h200",
            memory_gb=141,
            matrix_tflops_bf16=989,
            matrix_tflops_fp32=67,
            memory_gb_s=4800,
            intra_gb_s=450,
            inter_gb_s=50,
            host_gb_s=64,
        ),
        Cluster(
            name="h100",
            memory_gb=80,
            matrix_tflops_bf16=989,
            matrix_tflops_fp32=67,
            memory_gb_s=3350,
            intra_gb_s=450,
            inter_gb_s=50,
            host_gb_s=64,
        ),
        Cluster(
            name="a100",
            memory_gb=80,
            matrix_tflops_bf16=312,
            matrix_tflops_fp32=19.5,
            memory_gb_s=2039,
            intra_gb_s=300,
            inter_gb_s=25,
            host_gb_s=32,
        ),
    )
}


def find_cluster(name: str) -> Cluster:
    """A cluster of ``CLUSTERS`` by its name, or the one that a YAML file describes.

    Raises:
        ConfigError: No such cluster or file, or the file describes none.
    """
    if name in CLUSTERS:
        return CLUSTERS[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no cluster {name!r}: give the path of a YAML file, or one of {', '.join(CLUSTERS)}")
    return from_dict(Cluster, load_yaml(path), where=str(path))
