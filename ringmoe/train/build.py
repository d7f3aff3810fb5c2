"""From the settings of a run to a trainer that is ready to go."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ringmoe.checkpoint.pretrained import load_weights
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.clock import clock_of
from ringmoe.data.loader import Loader
from ringmoe.data.storage import remote_folders, scheme_of
from ringmoe.distributed.engine_file import LEAN
from ringmoe.distributed.launch import World
from ringmoe.distributed.lean import LeanEngine
from ringmoe.distributed.topology import Topology
from ringmoe.distributed.training_engine import TrainingEngine
from ringmoe.faults import point
from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.experts import recompute_hidden
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.naming import canonical_entries
from ringmoe.train.callbacks.base import Callback
from ringmoe.train.callbacks.checkpoint import Checkpoint
from ringmoe.train.callbacks.evaluation import Evaluation
from ringmoe.train.callbacks.expert_load import ExpertLoad
from ringmoe.train.callbacks.loss_spike import LossSpike
from ringmoe.train.callbacks.memory import Memory
from ringmoe.train.callbacks.metrics_file import MetricsFile
from ringmoe.train.callbacks.mixture import Mixture
from ringmoe.train.callbacks.nan_guard import NanGuard
from ringmoe.train.callbacks.pictures import Pictures
from ringmoe.train.callbacks.progress import ProgressLine
from ringmoe.train.callbacks.quarantine import Quarantine
from ringmoe.train.callbacks.remote import RemoteReading
from ringmoe.train.callbacks.speed import Speed
from ringmoe.train.callbacks.tensorboard import TensorBoard
from ringmoe.train.callbacks.watchdog import HangWatch
from ringmoe.train.contract import check_inputs
from ringmoe.train.loaders import train_loader, whole_tiles_loader
from ringmoe.train.optim import decay_of_parameters
from ringmoe.train.run import RunConfig
from ringmoe.train.trainer import Trainer

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build_trainer(config: RunConfig, world: World) -> Trainer:
    """Model with its first weights, engine, data and callbacks. Collective.

    Args:
        config: The run, checked.
        world: This rank among all.

    Raises:
        RingMoEError: See ``build_engine`` and ``Loader``, or the shards are not what the first weights were trained on.
    """
    point("build")
    loader = train_loader(config, rank=world.rank, world=world.size)
    if config.start is not None:
        folders = ", ".join(map(str, config.data.shards))
        start = open_checkpoint(config.start)
        check_inputs(start.config, loader, ours=f"checkpoint {start.path}", theirs=f"shards {folders}")
    model, engine = build_model_and_engine(config, world)
    return Trainer(config, world, model, engine, loader, list(_callbacks(config, world, loader)))


def build_model_and_engine(config: RunConfig, world: World) -> tuple[RingMoE, TrainingEngine]:
    """The model with its first weights, in the hands of the engine. Collective.

    Raises:
        CheckpointError: The weights that it shall start from do not fit the model, or are damaged.
        ConfigError: See ``build_engine``.
    """
    model = _build_model(config, world)
    initialise(model, config.seed)
    if config.start is not None:
        load_weights(model, open_checkpoint(config.start))
    if config.parallel.recompute == "experts":
        recompute_hidden(model)
    elif config.parallel.recompute == "blocks":
        from ringmoe.distributed.recompute import recompute_blocks  # fairscale, which only this asks for

        recompute_blocks(model, [f"blocks.{block}" for block in range(config.model.num_blocks)])
    groups = parameter_groups(model, config.optimiser.weight_decay)
    if config.parallel.engine == LEAN:
        return model, LeanEngine(model, groups, config.engine_config(), seed=config.seed)
    from ringmoe.distributed.engine import build_engine  # DeepSpeed, likewise

    return model, build_engine(model, groups, model.parallel, config.engine_config())


def _build_model(config: RunConfig, world: World) -> RingMoE:
    """The model with empty parameters: in fp32 on the host, as DeepSpeed takes it, or as the lean engine trains it."""
    topology = Topology(world.size, config.parallel.expert_parallel)
    parallel = ExpertParallel(topology.expert_parallel, topology.ep_rank(world.rank), clock=clock_of(world.device))
    lean = config.parallel.engine == LEAN
    with torch.device("meta") if lean else nullcontext():
        model = RingMoE(config.model, parallel)
    # the host never holds more of it than the tensors whose first values are being drawn
    return model.to(_TYPES[config.parallel.dtype]).to_empty(device=world.device) if lean else model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that decay and those that do not, as the engine takes them."""
    decays = decay_of_parameters(canonical_entries(model))
    named = dict(model.named_parameters())
    return [
        {
            "name": name,
            "params": [named[path] for path, decaying in decays.items() if decaying == wanted],
            "weight_decay": weight_decay if wanted else 0.0,
        }
        for name, wanted in (("decay", True), ("no_decay", False))
    ]


def _callbacks(config: RunConfig, world: World, loader: Loader) -> Iterator[Callback]:
    """In the order of their hooks: what watches, completes and checks rows, what makes them, saves, writes."""
    every, pictures = config.every, config.output / "pictures"
    images = config.images_per_step(world.size)
    yield HangWatch(_hang_after(config), config.output / "stacks")
    yield Mixture()
    yield Quarantine(config.output, config.data.bad_tiles)
    # recomputed blocks give no gradients but to the engine
    yield NanGuard(config.output, config.numbers.skips, backward=config.parallel.recompute != "blocks")
    yield LossSpike(config.numbers)
    yield Speed(
        images_per_step=images,
        tokens_per_step=images * config.model.map_size(0) ** 2,
        flops_per_step=config.model.training_flops(loader.images_per_step),
        dtype=_TYPES[config.parallel.dtype],
    )
    yield Memory()
    if remote := remote_folders(config.data.shards, config.data.remote):
        yield RemoteReading(remote)
    yield ExpertLoad(every.pictures, config.model, pictures, expert_parallel=config.parallel.expert_parallel)
    share = whole_tiles_loader(config.data, config.model, rank=world.rank, world=world.size)
    yield Evaluation(every.evaluation, config.evaluation, share)
    yield Pictures(every.pictures, whole_tiles_loader(config.data, config.model), pictures)
    yield Checkpoint(every.checkpoint)
    yield MetricsFile(config.output)
    yield TensorBoard(config.output / "tensorboard")
    yield ProgressLine()


def _hang_after(config: RunConfig) -> float:
    """Seconds after which a step hangs: not before a tile that is fetched from elsewhere has had all its attempts."""
    is_remote = any(scheme_of(folder) is not None for folder in config.data.shards)
    return max(config.hang_after, config.data.remote.patience) if config.hang_after and is_remote else config.hang_after
