"""One way to run a model: what is searched over, and what everything else here is computed from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ringmoe.data.mixing import images_per_micro_batch
from ringmoe.distributed.engine_file import LEAN, EngineConfig, check_engine_file, read_engine_file
from ringmoe.distributed.lean import check_lean
from ringmoe.distributed.topology import Topology
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.config import Recompute
from ringmoe.plan.cluster import Dtype

ITEM_BYTES: Mapping[Dtype, int] = {"bf16": 2, "fp32": 4}
_ENGINE_BUCKET = 500_000_000  # DeepSpeed's own, elements

# settings of the engine that change what is held or sent, with the values that are counted here
_COUNTED: Mapping[str, Any] = {
    "contiguous_gradients": True,
    "overlap_comm": False,
    "parameter_alignment": False,
    "reduce_scatter": True,
    "round_robin_gradients": False,
    "use_multi_rank_bucket_allreduce": True,
}


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """What an engine says of memory: that of a file, or the lean one, which has none.

    Attributes:
        name: As it was asked for.
        stage: ZeRO stage, 1 or 2; 0 of the lean engine.
        offload: Whether the optimiser's state is in the host's memory.
        reduce_bucket: Elements of the buffer that gradients are reduced in.
    """

    name: str
    stage: int
    offload: bool = False
    reduce_bucket: int = _ENGINE_BUCKET

    @property
    def lean(self) -> bool:
        """Whether it is the lean engine, for one device."""
        return self.name == LEAN

    @classmethod
    def read(cls, name: str, dtype: Dtype = "bf16") -> "EngineFile":
        """Reads a file of ``ds_configs`` or any other; ``lean`` needs none.

        Raises:
            ConfigError: No such file, one that no run could use, or one with settings that are not counted here.
        """
        if name == LEAN:
            return cls(name=name, stage=0)
        values = read_engine_file(name)
        section = check_engine_file(values, EngineConfig(file=name, dtype=dtype), 1)["zero_optimization"]
        for setting, counted in _COUNTED.items():
            if section.get(setting, counted) != counted:
                raise ConfigError(
                    f"engine file {name!r}: zero_optimization.{setting} is {section[setting]}, and what the engine "
                    f"then holds is not known here: plan with {counted}, or with another file"
                )
        if values.get("communication_data_type") is not None:
            raise ConfigError(
                f"engine file {name!r}: plans know gradients in the run's dtype only: leave out communication_data_type"
            )
        return cls(
            name=name,
            stage=int(section["stage"]),
            offload=section.get("offload_optimizer", {}).get("device", "none") != "none",
            reduce_bucket=int(section.get("reduce_bucket_size", _ENGINE_BUCKET)),
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is run.

    Attributes:
        devices: Ranks of the job, one for each device.
        expert_parallel: Ranks that share the experts.
        engine: How the engine works.
        dtype: Type of weights and activations.
        recompute: What the backward pass computes again.
        images: Images of each modality in a micro-batch of one rank.
        accumulation: Micro-batches of a step.
        clips: Whether gradients are clipped, until which the lean engine must hold them all.
    """

    devices: int
    expert_parallel: int
    engine: EngineFile
    dtype: Dtype
    recompute: Recompute
    images: Mapping[str, int]
    accumulation: int
    clips: bool = True

    @property
    def micro_batch(self) -> int:
        """Images of all modalities in a micro-batch of one rank."""
        return sum(self.images.values())

    @property
    def total(self) -> int:
        """Images of a step on all ranks."""
        return self.micro_batch * self.accumulation * self.devices

    @property
    def topology(self) -> Topology:
        """How the ranks are grouped."""
        return Topology(self.devices, self.expert_parallel)

    @property
    def item_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        """In words, for tables and messages."""
        words = f"EP {self.expert_parallel}, {self.engine.name}, micro-batch {self.micro_batch} x {self.accumulation}"
        return f"{words}, {self.recompute} recomputed"


def check_ranks(model: RingMoEConfig, setting: Setting) -> None:
    """Checks that engine and experts of a model can be spread over a setting's ranks.

    Raises:
        ConfigError: They cannot; the message says what can be done.
    """
    check_experts(model, setting.devices, setting.expert_parallel)
    if setting.engine.lean:
        check_lean(setting.devices, setting.expert_parallel)


def check_experts(model: RingMoEConfig, devices: int, expert_parallel: int) -> None:
    """Checks that the experts of a model can be spread over so many ranks.

    Raises:
        ConfigError: They cannot; the message says what can be done.
    """
    topology = Topology(devices, expert_parallel)
    families = {"specialised": model.num_specialised, "collaborative": model.num_collaborative}
    topology.check_experts({name: size for name, size in families.items() if size})
    if expert_parallel > 1 and (model.collaborative_kept is not None or not model.num_routed):
        raise ConfigError(f"expert-parallel size {expert_parallel}: a dense or pruned model takes size 1 only")


def split_images(model: RingMoEConfig, micro_batch: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Images of each modality in a micro-batch, as the loader splits it.

    Raises:
        ConfigError: The micro-batch cannot be split like this.
    """
    return images_per_micro_batch(micro_batch, model.modalities, weights)
