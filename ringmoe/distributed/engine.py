"""The engine that takes the optimiser steps: DeepSpeed with ZeRO-1 or ZeRO-2 and expert parallelism.

The only importer of DeepSpeed. What DeepSpeed has of its own for experts and for checkpoints is left aside: the experts
of a layer are stacked parameters, marked so that their gradients are averaged over the ranks that hold the same ones,
and state goes in and out tensor by tensor under global names (``ringmoe.naming``), so that what is saved on one number
of ranks loads on any other.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ringmoe.distributed.collectives import gather_json
from ringmoe.distributed.engine_file import EngineConfig, check_engine_file, read_engine_file
from ringmoe.distributed.launch import device_type
from ringmoe.distributed.topology import Topology
from ringmoe.distributed.training_engine import MOMENTS, ParameterGroups, by_parameter, check_groups, checked
from ringmoe.errors import ConfigError
from ringmoe.naming import Entry, canonical_entries

# DeepSpeed would guess the device, and warn that it did
os.environ.setdefault("DS_ACCELERATOR", device_type())

import deepspeed
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime import compiler
from deepspeed.utils import (
    groups,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

DEEPSPEED_VERSION = "0.19.8"


class ExpertParallelRanks(Protocol):
    """Where this rank stands among those that together hold every expert once; shared with the model's layers."""

    size: int
    rank: int
    group: dist.ProcessGroup | None


class Engine:
    """A model, its optimiser and the exchange of gradients between ranks.

    One optimiser step is ``accumulation`` rounds of ``forward``, ``backward`` and ``step``; the last ``step`` of them
    takes it. The gradient is the mean over ranks and micro-batches of the gradients of their losses.

    Attributes:
        model: The model as it was given.
        topology: How the ranks are grouped.
    """

    def __init__(self, inner: Any, model: nn.Module, topology: Topology) -> None:
        self.model = model
        self.topology = topology
        self._inner = inner
        self._owners: dict[str, int] | None = None  # agreed when the state is first asked for
        self._parted: frozenset[str] = frozenset()

    def forward(self, *inputs: Any) -> Any:
        """The model's output for a micro-batch."""
        return self._inner(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a micro-batch's loss, a scalar, to the step's."""
        self._inner.backward(loss)

    def step(self) -> None:
        """Ends a micro-batch: takes the optimiser step after the last one of a step, and only counts the others."""
        self._inner.step()

    @property
    def is_boundary(self) -> bool:
        """Whether the coming ``step`` will take the optimiser step."""
        return bool(self._inner.is_gradient_accumulation_boundary())

    @property
    def skipped(self) -> bool:
        """Whether the last optimiser step was left out on all ranks since a gradient was not finite."""
        return bool(self._inner.optimizer.overflow)

    @property
    def can_skip(self) -> bool:
        """True."""
        return True

    @property
    def updates(self) -> int:
        """Optimiser steps that weights and moments have seen, those left out not counted."""
        return int(next(iter(self._inner.basic_optimizer.state.values()))["step"].item())

    @property
    def grad_norm(self) -> Tensor:
        """Global norm of the last step's gradient over all parameters and ranks, before clipping; infinite if skipped.

        The gradient that was used had ``min(norm, clip)``.
        """
        return torch.as_tensor(self._inner.get_global_grad_norm(), dtype=torch.float32)

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the coming steps."""
        for group in self._inner.optimizer.param_groups:
            group["lr"] = lr

    def state_of(self, entries: Iterable[Entry]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The fp32 state of the named tensors, one parameter at a time. Collective: all ranks must exhaust it.

        Args:
            entries: ``canonical_entries`` of the model, on all ranks in the same order.

        Yields:
            Global name and its ``weight``, ``exp_avg`` and ``exp_avg_sq`` on the CPU, each name on the rank that owns
            it alone.
        """
        entries = list(entries)
        if self._owners is None:
            self._owners = self._agree_on_owners(entries)
        rank, kinds = dist.get_rank(), ("weight", *MOMENTS)
        for parameter, slices in by_parameter(entries):
            # the few that lie across the border of two shards are put together; all others are copied where they are
            is_parted = any(entry.name in self._parted for entry in slices)
            own = [entry for entry in slices if self._owners[entry.name] == rank]
            parted: dict[str, dict[str, Tensor]] = {entry.name: {} for entry in own if entry.name in self._parted}
            for kind in kinds if is_parted else ():  # one after the other: each is a whole stack of experts
                whole = _gathered(parameter, kind)
                for entry in own:
                    if entry.name in parted:
                        parted[entry.name][kind] = _part(whole, entry)
                del whole
            for entry in own:
                yield entry.name, parted.pop(entry.name, {}) or {kind: _in_shard(entry, kind) for kind in kinds}

    def load_state(self, getter: Callable[[str], Mapping[str, Tensor]], step: int) -> None:
        """Sets weights, masters and moments to saved ones, at any world, expert-parallel size and ZeRO stage.

        Args:
            getter: For a global name its ``weight``, ``exp_avg`` and ``exp_avg_sq``, whole; each rank asks for the
                names that it holds.
            step: Optimiser steps that the state has seen.

        Raises:
            CheckpointError: A tensor has another shape than the model's, or a moment is missing.
        """
        for state in self._inner.basic_optimizer.state.values():
            state["step"].fill_(step)
        with torch.no_grad():
            for parameter, slices in by_parameter(canonical_entries(self.model)):
                saved = [checked(getter(entry.name), entry) for entry in slices]
                stacked = slices[0].index is not None
                for kind in ("weight", *MOMENTS):
                    parts = [state[kind].to(parameter.device, torch.float32) for state in saved]
                    value = torch.stack(parts) if stacked else parts[0]
                    if kind == "weight":
                        safe_set_full_fp32_param(parameter, value)
                        parameter.data.copy_(value)
                    else:
                        safe_set_full_optimizer_state(parameter, value, kind)

    def close(self) -> None:
        """Lets go of the model: its parameters keep their values and lose the engine's hooks."""
        self._inner.destroy()

    def _agree_on_owners(self, entries: Sequence[Entry]) -> dict[str, int]:
        """Who saves each tensor that this rank holds: whose shard of the optimiser it lies in, or one of several."""
        rank = dist.get_rank()
        held = gather_json([entry.name for entry in entries if _is_in_shard(entry)])
        owners = {name: owner for owner, names in enumerate(held) for name in names}
        sizes = {entry.name: entry.tensor.numel() for entry in entries if entry.name not in owners}
        self._parted = frozenset(sizes)
        experts = {entry.name for entry in entries if self._is_spread(entry)}
        return owners | self.topology.owners(
            rank,
            shared={name: size for name, size in sizes.items() if name not in experts},
            experts={name: size for name, size in sizes.items() if name in experts},
        )

    def _is_spread(self, entry: Entry) -> bool:
        return entry.index is not None and self.topology.expert_parallel > 1


def build_engine(
    model: nn.Module,
    param_groups: ParameterGroups,
    parallel: ExpertParallelRanks,
    config: EngineConfig,
) -> Engine:
    """Hands a model to DeepSpeed. ``ringmoe.distributed.launch.start`` comes first. Collective.

    Args:
        model: The model, in fp32; its weights become ``config.dtype`` and move to the rank's device.
        param_groups: As for ``torch.optim.AdamW``, each with a ``name`` of its own; together they hold every parameter.
        parallel: The expert-parallel ranks that the model was built for; its ``group`` is set here.
        config: What the engine needs to know of the run.

    Raises:
        ConfigError: The engine's file contradicts the run, the expert-parallel size does not fit the world or the
            model, the parameter groups do not hold every parameter once, or DeepSpeed is of another version.
    """
    if deepspeed.__version__ != DEEPSPEED_VERSION:
        raise ConfigError(
            f"DeepSpeed {deepspeed.__version__} is installed, but its private parts are reached as in "
            f"{DEEPSPEED_VERSION}: pip install deepspeed=={DEEPSPEED_VERSION}"
        )
    topology = Topology(dist.get_world_size(), parallel.size)
    settings = check_engine_file(read_engine_file(config.file), config, topology.world)
    check_groups(model, param_groups)
    optimizer_groups = [{**group, "params": list(group["params"])} for group in param_groups]
    root = model
    if parallel.size > 1:
        root = _ExpertParallelModel(model, parallel)
        optimizer_groups = split_params_into_different_moe_groups_for_optimizer(optimizer_groups)
    optimizer = torch.optim.AdamW(
        [group for group in optimizer_groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    _lighten_deepspeed()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints memory tables; its warnings take another way
        deepspeed.init_distributed(verbose=False)
        inner, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=settings)
    _create_moments(inner)
    return Engine(inner, model, topology)


class _ExpertParallelModel(MoE):  # type: ignore[misc]
    """The model under the one class by which DeepSpeed knows that there are experts.

    Of that class only the name is wanted: its own gate and experts are never built.
    """

    def __init__(self, model: nn.Module, parallel: ExpertParallelRanks) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.parallel = parallel
        self.expert_group_name = f"ep_size_{parallel.size}"  # DeepSpeed parses the number out of it
        stacked = [entry for entry in canonical_entries(model) if entry.index is not None]
        if not stacked:
            raise ConfigError(f"expert-parallel size {parallel.size} but the model has no routed experts: use size 1")
        for entry in stacked:
            vars(entry.parameter).update(allreduce=False, group_name=self.expert_group_name)
        self.num_local_experts = max(entry.parameter.shape[0] for entry in stacked)
        self.num_experts = self.num_local_experts * parallel.size

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Called by DeepSpeed when ranks can be grouped."""
        if self.expert_group_name not in groups._get_expert_parallel_group_dict():
            groups._create_expert_and_data_parallel(
                self.parallel.size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        group = groups._get_expert_parallel_group(self.expert_group_name)
        if dist.get_rank(group) != self.parallel.rank:
            raise ValueError(
                f"the model was built for place {self.parallel.rank}, DeepSpeed gives {dist.get_rank(group)}"
            )
        self.parallel.group = group

    def forward(self, *inputs: Any) -> Any:
        """The model's output."""
        return self.model(*inputs)


def _lighten_deepspeed() -> None:
    """Keeps DeepSpeed from compiling and importing for uses that are not ours, most of its time to start otherwise."""
    # its all-reduce for inference would be compiled on the spot, behind a lock that a killed process leaves for ever
    deepspeed.ops.__compatible_ops__ = {}
    # it asks whether the optimiser is its own Muon, which has functions decorated for torch's compiler
    decorator, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    compiler.compile = decorator


def _create_moments(inner: Any) -> None:
    """Gives every shard of the optimiser its moments, all zero, and links them to their parameters.

    DeepSpeed would do so in the first step, after the first parameter group alone, and not find the others later.
    """
    optimizer = inner.basic_optimizer
    for group in optimizer.param_groups:
        for shard in group["params"]:
            optimizer.state[shard] = {moment: torch.zeros_like(shard) for moment in MOMENTS}
            optimizer.state[shard]["step"] = torch.zeros((), device=shard.device)
    inner.optimizer._lazy_init_hp_params_optimizer_state()


def _is_in_shard(entry: Entry) -> bool:
    """Whether this rank's shard of the optimiser's state holds all of an entry."""
    fragment = _fragment(entry.parameter)
    if fragment is None:
        return False
    first, held = _first(entry), fragment.lp_fragment_address
    return bool(held.start <= first and first + entry.tensor.numel() <= held.start + held.numel)


def _in_shard(entry: Entry, kind: str) -> Tensor:
    """A copy on the CPU of an entry's values, which this rank's shard holds; DeepSpeed keeps shards flat."""
    fragment = _fragment(entry.parameter)
    flat = fragment.get_hp_fragment(None if kind == "weight" else kind)
    first = _first(entry) - fragment.lp_fragment_address.start
    values: Tensor = flat.detach().narrow(0, first, entry.tensor.numel()).view(entry.tensor.shape)
    return values.to("cpu", torch.float32, copy=True)


def _fragment(parameter: nn.Parameter) -> Any:
    """What DeepSpeed says of the part of a parameter that this rank's shard holds; None for no part."""
    return vars(parameter)["_hp_mapping"]


def _first(entry: Entry) -> int:
    """Where an entry begins in its flattened parameter."""
    return 0 if entry.index is None else entry.index * entry.tensor.numel()


def _gathered(parameter: nn.Parameter, kind: str) -> Tensor:
    """A parameter's values from the shards of all ranks that hold it. Collective among them."""
    whole: Tensor = (
        safe_get_full_fp32_param(parameter) if kind == "weight" else safe_get_full_optimizer_state(parameter, kind)
    )
    return whole


def _part(value: Tensor, entry: Entry) -> Tensor:
    """One entry's values on the CPU; a copy of its slice, which does not keep the whole stack in memory."""
    return value.cpu() if entry.index is None else value[entry.index].to("cpu", copy=True)
