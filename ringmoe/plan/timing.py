"""How long a step may take: an estimate from rates, sizes and latencies, in which nothing overlaps.

Products are the model's operations at a share of the matrix rate. Memory is what weights and activations move.
Collectives follow the ring: messages x latency + bytes / rate, where a group that spans nodes shares its nodes' links.
The launching of kernels, waiting for the slowest rank, and reading of data are not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.config import Recompute
from ringmoe.plan.activations import FLOAT32
from ringmoe.plan.cluster import GB, Cluster
from ringmoe.plan.exchange import Collective
from ringmoe.plan.memory import Memory
from ringmoe.plan.parameters import FlatBuffer
from ringmoe.plan.setting import Setting

# a kept byte is written and read forward, read backward, and its gradient is written, read and added to; all are
# written and read once more when blocks are recomputed, and about half of them when experts are
_MOVES_OF_ACTIVATION: dict[Recompute, float] = {"nothing": 6, "experts": 7, "blocks": 8}
# weights are read forward and backward, and as much is written as gradient; experts read half of theirs again
_MOVES_OF_WEIGHT: dict[Recompute, float] = {"nothing": 3, "experts": 3.5, "blocks": 4}
# a third of the work is the forward pass, which blocks repeat; experts repeat half of their part of it, which is
# nearly all
_WORK: dict[Recompute, float] = {"nothing": 1, "experts": 7 / 6, "blocks": 4 / 3}
# AdamW reads gradient, master and moments and writes master and moments, all in fp32
_MOVES_OF_STATE = 7
# the lean engine reads gradient and weight and writes the weight, and reads and writes two moments of a byte each
_MOVES_OF_LEAN_WEIGHT, _BYTES_OF_LEAN_MOMENTS = 3, 4


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimiser step, by what takes them, and what comes of it.

    Attributes:
        products: Matrix products.
        memory: Traffic of weights and activations.
        optimiser: AdamW, with the way to the host and back if its state is there.
        experts: Exchange of rows.
        gradients: Averaging of gradients.
        weights: Gathering of weights.
        efficiency: Operations that the model needs, over those that the devices could do in this time.
        images_per_second: Images of all ranks.
    """

    products: float
    memory: float
    optimiser: float
    experts: float
    gradients: float
    weights: float
    efficiency: float
    images_per_second: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.products + self.memory + self.optimiser + self.experts + self.gradients + self.weights


def step_time(
    model: RingMoEConfig,
    setting: Setting,
    cluster: Cluster,
    buffers: Sequence[FlatBuffer],
    memory: Memory,
    exchange: Sequence[Collective],
) -> StepTime:
    """Estimates one optimiser step.

    Args:
        model: The model.
        setting: How it is run.
        cluster: On what.
        buffers: The engine's flat buffers.
        memory: Of one rank.
        exchange: Of a step.
    """
    work = setting.accumulation * model.training_flops(setting.images)
    rate = cluster.operations_per_second(setting.dtype)
    again = setting.recompute
    moved = _MOVES_OF_ACTIVATION[again] * memory.activations_kept + _MOVES_OF_WEIGHT[again] * memory.weights
    parts = {
        "products": work * _WORK[again] / (rate * cluster.matrix_share),
        "memory": setting.accumulation * moved / _rate(cluster, cluster.memory_gb_s),
        "optimiser": _optimiser(setting, cluster, buffers),
        "experts": _seconds(exchange, cluster, "all-to-all"),
        "gradients": _seconds(exchange, cluster, "all-reduce"),
        "weights": _seconds(exchange, cluster, "all-gather"),
    }
    total = sum(parts.values())
    return StepTime(**parts, efficiency=work / (rate * total), images_per_second=setting.total / total)


def seconds(collective: Collective, cluster: Cluster) -> float:
    """All calls of a collective: latency of every message, and the bytes at the rate of the slowest link."""
    in_node = min(collective.ranks, max(1, cluster.devices_per_node // collective.stride))
    across = collective.ranks > in_node
    # the ring leaves a node once, over the links of all its members together
    inter = collective.sent / (_rate(cluster, cluster.inter_gb_s) * in_node) if across else 0.0
    intra = collective.sent / _rate(cluster, cluster.intra_gb_s) if in_node > 1 else 0.0
    latency = cluster.inter_latency_us if across else cluster.intra_latency_us
    return collective.messages * latency * 1e-6 + max(inter, intra)


def _seconds(exchange: Sequence[Collective], cluster: Cluster, operation: str) -> float:
    return sum((seconds(collective, cluster) for collective in exchange if collective.operation == operation), 0.0)


def _optimiser(setting: Setting, cluster: Cluster, buffers: Sequence[FlatBuffer]) -> float:
    part = sum(buffer.part for buffer in buffers)
    if setting.engine.lean:
        moved = _MOVES_OF_LEAN_WEIGHT * setting.item_bytes + _BYTES_OF_LEAN_MOMENTS
        return part * moved / _rate(cluster, cluster.memory_gb_s)
    if not setting.engine.offload:
        return part * _MOVES_OF_STATE * FLOAT32 / _rate(cluster, cluster.memory_gb_s)
    link = part * 2 * setting.item_bytes / _rate(cluster, cluster.host_gb_s)  # gradients there, weights back
    return link + part * _MOVES_OF_STATE * FLOAT32 / _rate(cluster, cluster.host_memory_gb_s)


def _rate(cluster: Cluster, gb_s: float) -> float:
    return gb_s * GB * cluster.traffic_share
