"""``ringmoe evaluate``: masked reconstruction of a checkpoint on held-out tiles, against the visible mean."""

import json
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich import box
from rich.table import Table

from ringmoe.checkpoint.pretrained import load_weights
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.cli.console import console, print_remote
from ringmoe.data.layout import Split
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import ConfigError
from ringmoe.models import build_model, check_stored, config_from
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.train.contract import check_inputs
from ringmoe.train.evaluate import HeldOut, evaluate
from ringmoe.train.loaders import whole_tiles_loader
from ringmoe.train.run import EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig):
    """What to evaluate, and on which tiles.

    Attributes:
        checkpoint: Folder of a checkpoint, or of a run, whose newest one is taken.
        shards: Folders of shards, those of training or others with the same inputs, or URLs of such.
        remote: How those are read that are URLs.
        split: Tiles that were kept out of training, or those that trained.
        json: Print machine-readable JSON instead of a table.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    shards: tuple[Location, ...]
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    split: Split = "val"
    json: bool = False


def run(config: EvaluateConfig) -> None:
    """Evaluates a checkpoint of training, of compression or of a release.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ConfigError: Its model has no decoders.
        ShardError: The shards are missing or damaged, or their inputs are not those that the model was trained on.
    """
    reader = open_checkpoint(config.checkpoint)
    model = _load(reader)
    loader = whole_tiles_loader(
        DataConfig(shards=config.shards, remote=config.remote, bad_tiles=0), model.config, split=config.split
    )
    with closing(loader):
        _check(reader, loader, config.shards)
        results = evaluate(
            model, loader, device=torch.device("cpu"), masks=config.masks, batch=config.batch, tiles=config.tiles
        )
    if config.json:
        print(json.dumps({key: asdict(result) | {"ratio": result.ratio} for key, result in results.items()}, indent=2))
    else:
        console.print(_table(results, f"{reader.path}, split {config.split}, {config.masks} masks for each tile"))
        print_remote(config.shards, config.remote)


def _load(reader: CheckpointReader) -> RingMoE:
    config = config_from(reader.config, where=str(reader.path / "config.json"))
    check_stored(config, reader.weight_bytes, str(reader.path))
    model = build_model(config)
    if not isinstance(model, RingMoE) or not model.decoders:
        raise ConfigError(f"{reader.path} has no decoders: it was made for use, and cannot reconstruct")
    load_weights(model, reader)
    return model


def _check(reader: CheckpointReader, loader: Loader, shards: tuple[Location, ...]) -> None:
    folders = ", ".join(map(str, shards))
    check_inputs(reader.config, loader, ours=f"checkpoint {reader.path}", theirs=f"shards {folders}")


def _table(results: dict[str, HeldOut], caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=caption, title="masked squared error, normalised units")
    for heading in ("modality", "tiles", "model", "visible mean", "ratio"):
        table.add_column(heading, justify="left" if heading == "modality" else "right")
    for key, result in results.items():
        table.add_row(
            key, str(result.num_tiles), f"{result.model:.4f}", f"{result.baseline:.4f}", f"{result.ratio:.3f}"
        )
    return table
