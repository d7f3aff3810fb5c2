"""The command line of a run: a preset, a file over it, single settings over both."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from ringmoe import modality
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CONFIG_FILE
from ringmoe.config import from_dict, load_yaml, to_dict, to_yaml
from ringmoe.distributed.environment import Place, find_place, take_local_rank
from ringmoe.errors import ConfigError, RingMoEError
from ringmoe.models import PRESETS as MODEL_PRESETS
from ringmoe.models import config_from
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.train.checks import check
from ringmoe.train.dry_run import plan_of
from ringmoe.train.presets import preset
from ringmoe.train.run import RunConfig

T = TypeVar("T")

_DESCRIPTION = f"""Pre-trains a model by masked reconstruction; the same command continues a run that was stopped.

First of all comes a preset, --preset NAME ({", ".join(MODEL_PRESETS)}; tiny without it). Over it --config FILE lays the
settings of a YAML file, over that the model of --start CHECKPOINT, and over that the options below, which show what
they are then. --modalities FILE declares further modalities. --dry-run prints what would be done and starts nothing;
--print-config prints all settings as YAML for --config."""


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> RunConfig:
    """The run that the command line asks for, checked against the ranks that were started and the shards.

    Args:
        arguments: Without the program's name; ``--local_rank``, which DeepSpeed's launcher adds, is left out.
        environ: Tells which rank this is and how many there are.

    Raises:
        RingMoEError: A setting is wrong or settings contradict each other; raised on one rank of each machine only.
        SystemExit: Help, --dry-run or --print-config were answered, or another rank of this machine raises.
    """
    place = find_place(environ)
    try:
        return _parse(take_local_rank(arguments), place)
    except RingMoEError:
        # every rank finds the same fault: one of them says it
        if place.local_rank:
            raise SystemExit(2) from None
        raise


def _parse(arguments: Sequence[str], place: Place) -> RunConfig:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--modalities", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--print-config", action="store_true")
    first, rest = parser.parse_known_args(arguments)
    if first.modalities:
        modality.load(first.modalities)
    base = preset(first.preset)
    if first.config:
        base = overlay(base, load_yaml(first.config), where=str(first.config))
    if first.start:
        base = replace(base, start=first.start, model=_model_of(first.start))
    config = tyro.cli(
        RunConfig,
        prog="pretrain.py",
        description=_DESCRIPTION,
        default=base,
        args=rest,
        console_outputs=place.local_rank == 0,
    )
    if first.print_config:
        _answer(place, to_yaml(config))
    world = place.size
    if first.dry_run and place.launcher == "none":
        world = max(world, config.parallel.expert_parallel)
    check(config, world)
    if first.dry_run:
        _answer(place, plan_of(config, world))
    return config


def _model_of(start: Path) -> RingMoEConfig:
    """The model whose weights a run starts from.

    Raises:
        CheckpointError: There is no complete checkpoint.
        ConfigError: It is no RingMoE, or has no decoders to train with.
    """
    reader = open_checkpoint(start)
    model = config_from(reader.config, where=str(reader.path / CONFIG_FILE))
    if not isinstance(model, RingMoEConfig):
        raise ConfigError(f"--start {start}: a {reader.config['family']!r} model, which this run does not train")
    if not model.decoders:
        raise ConfigError(
            f"--start {start}: it has no decoders, which pre-training needs; compress with --keep-decoders"
        )
    return model


def overlay(config: T, values: Mapping[str, Any], *, where: str) -> T:
    """A dataclass with some of its settings replaced, those of nested dataclasses one by one.

    Args:
        config: The dataclass.
        values: Field names to plain values.
        where: What is being read, for messages.

    Raises:
        ConfigError: Unknown field or value of the wrong type.
    """
    merged = to_dict(config)
    for name, value in values.items():
        field = getattr(config, name, None)
        nested = is_dataclass(field) and isinstance(value, Mapping)
        merged[name] = to_dict(overlay(field, value, where=f"{where}: {name}")) if nested else value
    return from_dict(type(config), merged, where=where)


def _answer(place: Place, answer: Any) -> None:
    if place.rank == 0:
        if isinstance(answer, str):
            sys.stdout.write(answer)
        else:
            Console().print(answer)
    raise SystemExit(0)
