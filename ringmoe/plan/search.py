"""A plan is a setting with its memory, exchange and time; the search is for the fastest one that fits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

from ringmoe.distributed.lean import check_lean
from ringmoe.distributed.topology import Topology
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.config import Recompute
from ringmoe.plan.cluster import GB, Cluster, Dtype
from ringmoe.plan.exchange import Collective, collectives
from ringmoe.plan.lean import lean_memory
from ringmoe.plan.memory import Memory, memory_of
from ringmoe.plan.parameters import flat_buffers, local_parameters
from ringmoe.plan.setting import EngineFile, Setting, check_experts, check_ranks, split_images
from ringmoe.plan.timing import StepTime, step_time


@dataclass(frozen=True)
class Workload:
    """What shall be trained, whatever the setting.

    Attributes:
        model: The model.
        dtype: Type of weights and activations.
        weights: Share of each modality in a micro-batch; empty for equal shares.
        decays: Whether weight decay acts on the tensor of a global name.
        clips: Whether gradients are clipped.
    """

    model: RingMoEConfig
    dtype: Dtype
    weights: Mapping[str, float]
    decays: Callable[[str], bool]
    clips: bool = True


@dataclass(frozen=True)
class Plan:
    """What a setting comes to.

    Attributes:
        setting: The setting.
        memory: Bytes of the rank that holds most.
        exchange: What one rank sends in a step.
        time: Seconds of a step.
        fits: Whether the memory of device and host suffices.
    """

    setting: Setting
    memory: Memory
    exchange: tuple[Collective, ...]
    time: StepTime
    fits: bool


def plan(work: Workload, setting: Setting, cluster: Cluster) -> Plan:
    """What a setting needs and how long its steps take.

    Raises:
        ConfigError: The experts, or the engine, cannot be spread over so many ranks.
    """
    check_ranks(work.model, setting)
    parameters = local_parameters(work.model, setting.expert_parallel, work.decays)
    buffers = flat_buffers(parameters, setting.devices, setting.expert_parallel)
    lean = setting.engine.lean
    memory = lean_memory(work.model, setting, parameters) if lean else memory_of(work.model, setting, buffers)
    exchange = collectives(work.model, setting, buffers)
    time = step_time(work.model, setting, cluster, buffers, memory, exchange)
    fits = memory.peak <= cluster.usable_bytes and memory.host_peak <= cluster.usable_host_bytes(setting.devices)
    return Plan(setting, memory, exchange, time, fits)


def search(work: Workload, cluster: Cluster, *, devices: int, total: int, engines: Sequence[EngineFile]) -> list[Plan]:
    """All settings that fit, the fastest first; of equally fast ones the one that needs least memory.

    Args:
        work: What shall be trained.
        cluster: On what.
        devices: Ranks.
        total: Images of a step on all ranks, which no setting changes.
        engines: Engines to choose from; the lean one is left out where there are several devices.

    Raises:
        ConfigError: The images cannot be shared out, or no setting fits; the message says what is short and what helps.
    """
    fitting_engines = [engine for engine in engines if devices == 1 or not engine.lean]
    if not fitting_engines:
        check_lean(devices, 1)
    plans = [plan(work, setting, cluster) for setting in _candidates(work, devices, total, fitting_engines)]
    if not plans:
        least = len(work.model.modalities)
        raise ConfigError(
            f"{total} images of a step cannot be shared out among {devices} devices: each takes at least {least}, one "
            f"of each modality, and all take the same number. Use a multiple of {devices}, from {devices * least}"
        )
    fitting = [found for found in plans if found.fits]
    if not fitting:
        raise ConfigError(shortage(min(plans, key=lambda found: found.memory.peak), cluster))
    return sorted(fitting, key=lambda found: (found.time.total, found.memory.peak))


# what most of a device's memory is taken by -> what helps
_REMEDIES = {
    "optimiser state": "more devices share it, the engine file offload keeps it on the host, and on one device the "
    "engine lean has a sixth of it",
    "gradients": "ZeRO stage 2 keeps an averaged share of them only, and a larger expert-parallel size makes fewer",
    "activations": "recompute them, or take a smaller micro-batch or image_size",
    "weights": "with a larger expert-parallel size a device holds fewer experts; else take a smaller model",
    "buckets": "take a smaller reduce_bucket_size (the largest parameter is copied whole in any case) or a larger "
    "expert-parallel size",
}


def shortage(found: Plan, cluster: Cluster) -> str:
    """What a plan that does not fit lacks, in words, and what would help."""
    memory, setting = found.memory, found.setting
    where = f"{setting} on {setting.devices} x {cluster.name} does not fit"
    usable = cluster.usable_host_bytes(setting.devices)
    if memory.peak <= cluster.usable_bytes:
        return (
            f"{where}: a host must hold {memory.host_peak / GB:.1f} GB for each device and may fill "
            f"{usable / GB:.1f} GB, so that {(memory.host_peak - usable) / GB:.1f} GB are short: use fewer devices of "
            "a node, a larger expert-parallel size, or keep the optimiser on the devices"
        )
    kinds = {
        "optimiser state": memory.optimiser + memory.scales,
        "gradients": memory.gradients,
        "activations": memory.activations + memory.workspace,
        "weights": memory.weights,
        "buckets": memory.buckets,
    }
    largest = max(kinds, key=lambda kind: kinds[kind])
    return (
        f"{where}: a device must hold {memory.peak / GB:.1f} GB and may fill {cluster.usable_bytes / GB:.1f} of its "
        f"{cluster.memory_gb:g} GB, so that {(memory.peak - cluster.usable_bytes) / GB:.1f} GB are short. Most are "
        f"{largest} ({kinds[largest] / GB:.1f} GB): {_REMEDIES[largest]}"
    )


def _candidates(work: Workload, devices: int, total: int, engines: Iterable[EngineFile]) -> Iterator[Setting]:
    batches = list(_batches(work, devices, total))
    sizes = [size for size in Topology(devices).possible_sizes if _spreads(work.model, devices, size)]
    for (micro_batch, accumulation), size, engine, recompute in product(batches, sizes, engines, get_args(Recompute)):
        yield Setting(
            devices=devices,
            expert_parallel=size,
            engine=engine,
            dtype=work.dtype,
            recompute=recompute,
            images=split_images(work.model, micro_batch, work.weights),
            accumulation=accumulation,
            clips=work.clips,
        )


def _batches(work: Workload, devices: int, total: int) -> Iterator[tuple[int, int]]:
    """Micro-batch and accumulation of every way to share out the images of a step."""
    of_rank, rest = divmod(total, devices)
    if rest:
        return
    for micro_batch in range(len(work.model.modalities), of_rank + 1):
        if of_rank % micro_batch == 0:
            yield micro_batch, of_rank // micro_batch


def _spreads(model: RingMoEConfig, devices: int, size: int) -> bool:
    try:
        check_experts(model, devices, size)
    except ConfigError:
        return False
    return True
