"""Carrying out a plan: a stream of the result's tensors, made one after the other from a checkpoint's.

What is asked for leads: the result's own list of tensors says what is made next, so the model is never held as a whole
and the stream cannot miss a tensor or add one. Peak memory is one merged tensor in float64 and one expert's tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress import ka, kc, ks
from ringmoe.compress.plan import BlockPlan, CompressionPlan
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models import build_model, config_from
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.naming import canonical_entries


@dataclass(frozen=True)
class Merge:
    """What merging did to one weight matrix.

    Attributes:
        scale: Frobenius norm of the merged matrix over that of the shared expert's; None without a shared expert.
            Nothing in the paper scales the sums, and only the norm behind the FFN hides it.
        energy: Least share of its squared norm that a truncated expert retained; 1 where none was truncated.
    """

    scale: float | None
    energy: float


class Made(NamedTuple):
    """One tensor of the result; ``merge`` tells of a merged weight matrix, and is None for all else."""

    name: str
    tensor: Tensor
    merge: Merge | None = None


def source_config(reader: CheckpointReader) -> RingMoEConfig:
    """The model of a checkpoint.

    Raises:
        ConfigError: Another family than RingMoE, or settings that this version does not know.
    """
    config = config_from(reader.config, where=str(reader.path / "config.json"))
    if not isinstance(config, RingMoEConfig):
        raise ConfigError(f"{reader.path} is a {reader.config['family']!r} model: it has no experts of this kind")
    return config


def shapes(config: RingMoEConfig) -> dict[str, tuple[int, ...]]:
    """Global name and shape of every tensor that a model has, without storage."""
    with torch.device("meta"):
        model = build_model(config)
    return {entry.name: tuple(entry.tensor.shape) for entry in canonical_entries(model)}


def apply(plan: CompressionPlan, reader: CheckpointReader) -> Iterator[Made]:
    """Makes the result's tensors in the order of its modules.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for.

    Yields:
        Each tensor of the result, in the type of its source.

    Raises:
        ConfigError: The plan is provisional.
        CheckpointError: A tensor is missing, has another shape than the config says, or is not finite.
    """
    plan.check_decided()
    for name, shape in shapes(plan.result).items():
        made = _make(plan, reader, name)
        if tuple(made.tensor.shape) != shape:
            raise CheckpointError(
                f"{reader.path}: {name} comes out as {tuple(made.tensor.shape)} but its config.json says {shape}"
            )
        yield made


def _make(plan: CompressionPlan, reader: CheckpointReader, name: str) -> Made:
    """One tensor: merged, some columns of its source, or the source itself."""
    layer, inside, part = name.partition(".moe.")
    if not inside:
        return Made(name, _read(reader, name))
    block = plan.blocks[int(layer.removeprefix("blocks."))]
    if block.merged:
        return _merged(plan, reader, block, name)
    tensor = _read(reader, name)
    if part.startswith("router.collaborative."):
        ids = plan.source.collaborative_ids(block.block)
        tensor = tensor[:, [ids.index(k) for k in block.kept]]
    return Made(name, tensor)


def _merged(plan: CompressionPlan, reader: CheckpointReader, block: BlockPlan, name: str) -> Made:
    """W_1, b_1, W_2 or b_2 of the one FFN that a block's experts become (Eqs. 11 and 17)."""
    layer, _, attribute = name.rpartition(".shared.")
    is_matrix = attribute in ("w1", "w2")
    shared_norm = 0.0

    def tensors() -> Iterator[Tensor]:
        nonlocal shared_norm
        for expert in block.merged:
            tensor = _read(reader, f"{layer}.{expert.name}.{attribute}")
            if expert.name == "shared":
                shared_norm = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
            yield tensor

    energy = 1.0
    if plan.options.mode == "ks":
        total = ks.merge(tensors())
    elif plan.options.mode == "ka":
        total = ka.merge(tensors())
    else:
        ranks = [expert.rank if is_matrix else None for expert in block.merged]
        total, energy = kc.merge(zip(tensors(), ranks, strict=True))
    dtype = reader.manifest.tensors[f"{layer}.{block.merged[0].name}.{attribute}"].dtype
    scale = total.norm().item() / shared_norm if shared_norm else None
    return Made(name, total.to(getattr(torch, dtype)), Merge(scale, energy) if is_matrix else None)


def _read(reader: CheckpointReader, name: str) -> Tensor:
    tensor = reader.tensor(name)
    if not torch.isfinite(tensor).all():
        num = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{reader.path}: {num} of {tensor.numel()} values of {name} are not finite; take an earlier checkpoint"
        )
    return tensor
