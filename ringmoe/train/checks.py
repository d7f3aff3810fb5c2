"""Do the settings of a run fit each other, the ranks that were started and the shards? Asked before anything starts."""

from collections.abc import Callable
from contextlib import closing
from itertools import product

from ringmoe.data.manifest import Manifest
from ringmoe.distributed.engine_file import LEAN, check_engine_file, read_engine_file
from ringmoe.distributed.lean import check_lean
from ringmoe.distributed.topology import Topology
from ringmoe.errors import ConfigError, RingMoEError
from ringmoe.train.loaders import train_loader, whole_tiles_loader
from ringmoe.train.run import RunConfig


def check(config: RunConfig, world: int) -> None:
    """Applies every rule, so that one message says all that is wrong.

    Args:
        config: The run.
        world: Ranks that were started.

    Raises:
        ConfigError: Settings contradict each other; for each contradiction the message says what to do.
    """
    problems: dict[str, None] = {}  # each once, though the loader finds some of them again
    for rule in RULES:
        try:
            rule(config, world)
        except RingMoEError as error:
            problems[str(error)] = None
    if problems:
        raise ConfigError("\n".join(problems if len(problems) == 1 else ("several settings do not fit:", *problems)))


def _decoders(config: RunConfig, world: int) -> None:
    if not config.model.decoders:
        raise ConfigError(
            "the model has no decoders, and pre-training reconstructs: switch them on (--model.decoders), or start "
            "from a preset that has them"
        )


def _experts(config: RunConfig, world: int) -> None:
    size = config.parallel.expert_parallel
    topology = Topology(world, size)
    families = {"specialised": config.model.num_specialised, "collaborative": config.model.num_collaborative}
    topology.check_experts({name: number for name, number in families.items() if number})
    if size > 1 and config.model.collaborative_kept is not None:
        raise ConfigError(
            f"expert-parallel size {size} with a pruned model, whose layers keep different numbers of experts: use "
            "--parallel.expert-parallel 1"
        )
    if size > 1 and not any(families.values()):
        raise ConfigError(
            f"expert-parallel size {size}, but the model has no routed experts: use --parallel.expert-parallel 1"
        )


def _engine(config: RunConfig, world: int) -> None:
    if config.parallel.engine == LEAN:
        check_lean(world, config.parallel.expert_parallel)
    else:
        check_engine_file(read_engine_file(config.parallel.engine), config.engine_config(), world)


def _batch(config: RunConfig, world: int) -> None:
    # of equal sizes, as no shard is open yet: whether there are enough images, and of the right modalities
    config.data.split_images(config.data.micro_batch, dict.fromkeys(config.model.modalities, 1))
    total, found = config.batch.total, config.images_per_step(world)
    if total is not None and total != found:
        per_round = config.data.micro_batch * world
        if total % per_round:
            remedy = f"{total} is no multiple of {per_round}: change --data.micro-batch, the ranks, or --batch.total"
        else:
            remedy = f"set --batch.accumulation {total // per_round}"
        raise ConfigError(
            f"a step has {found} images (micro-batch {config.data.micro_batch} x {config.batch.accumulation} "
            f"accumulated x {world} ranks), but --batch.total asks for {total}: {remedy}"
        )


def _shards(config: RunConfig, world: int) -> None:
    with closing(train_loader(config, rank=0, world=world)), closing(whole_tiles_loader(config.data, config.model)):
        pass  # opening them finds out whether every modality is there
    manifests = {folder: Manifest.open(folder, config.data.remote) for folder in config.data.shards}
    for folder, key in product(manifests, config.model.modalities):
        entry = manifests[folder].modalities.get(key)
        if entry is not None and entry.tile < config.model.image_size:
            raise ConfigError(
                f"{folder}: tiles of {key} have {entry.tile} pixels, the model takes images of "
                f"{config.model.image_size}: build shards with larger tiles, or train with --model.image-size "
                f"{_fitting_size(config, entry.tile)}"
            )


def _fitting_size(config: RunConfig, tile: int) -> int:
    """The largest image size of the model that is not above ``tile``."""
    step = max(config.model.stride, config.model.mask_unit)
    return max(tile // step, 1) * step


RULES: tuple[Callable[[RunConfig, int], None], ...] = (_decoders, _experts, _engine, _batch, _shards)
