"""``ringmoe init OUT --preset ringmoe-14b``: an untrained model as a checkpoint, streamed to the disk.

Its weights are those that a run of the same preset and seed would begin with. Whoever wants to try compression, loading
or serving at full size needs no trained model for it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ringmoe.checkpoint.disk import free_bytes, readable_size, require_space
from ringmoe.checkpoint.manifest import FORMAT
from ringmoe.checkpoint.store import CheckpointWriter
from ringmoe.cli.console import console
from ringmoe.config import to_dict
from ringmoe.layers.init import first_weights
from ringmoe.models import build_model, family_of, preset
from ringmoe.naming import canonical_entries

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_HEADERS = 1024  # bytes on disk for a tensor beside its numbers, at most


@dataclass(frozen=True)
class InitConfig:
    """Writes a checkpoint with the first weights of a model; it holds a few tensors in memory at a time.

    Attributes:
        out: Folder of the checkpoint; it must not exist.
        preset: The model (ringmoe models lists them).
        dtype: Type of the stored weights.
        seed: Fixes the weights: a run with this seed begins with the same ones.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    preset: str = "tiny"
    dtype: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0


def run(config: InitConfig) -> None:
    """Says what it takes, and writes.

    Raises:
        ConfigError: There is no such preset.
        CheckpointError: ``out`` exists, or the disk is too full; nothing is left behind.
    """
    model_config, dtype = preset(config.preset), _TYPES[config.dtype]
    with torch.device("meta"):
        model = build_model(model_config)
    shapes = {entry.name: entry.tensor.shape for entry in canonical_entries(model)}
    num_params = sum(shape.numel() for shape in shapes.values())
    num_bytes = num_params * dtype.itemsize
    needed = num_bytes + _HEADERS * len(shapes)
    with CheckpointWriter(config.out) as writer:
        where = config.out.absolute().parent
        require_space(where, needed)
        console.print(
            f"{readable_size(needed)} are needed in {where}, {readable_size(free_bytes(where))} are free",
            markup=False,
            soft_wrap=True,
        )
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            task = progress.add_task("drawing weights", total=num_bytes)
            for name, tensor in first_weights(model, config.seed):
                writer.add(name, tensor.to(dtype))
                progress.advance(task, tensor.numel() * dtype.itemsize)
        family = family_of(model_config).name
        writer.commit(config={"format": FORMAT, "family": family, "model": to_dict(model_config), "inputs": {}}, step=0)
    console.print(f"{config.out}: {num_params:,} parameters in {config.dtype}", markup=False, soft_wrap=True)
