"""Carrying out a plan: each tensor of the result is made by itself from a checkpoint's.

What is asked for leads: the result's own list of tensors says what is made, so the model is never held as a whole and
no tensor can be missed or added. Peak memory is one merged tensor in float64 and one expert's tensor.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress import ka, kc, ks
from ringmoe.compress.plan import BlockPlan, CompressionPlan
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models import build_model, check_stored, config_from
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.naming import canonical_entries


@dataclass(frozen=True)
class Merge:
    """What merging did to one weight matrix.

    Attributes:
        scale: Frobenius norm of the merged matrix over that of the shared expert's; None without a shared expert.
            Nothing in the paper scales the sums, and only the norm behind the FFN hides it.
        energy: Least share of its squared norm (of its outputs' squares, where tokens whiten it) that a truncated
            expert retained; 1 where none was truncated.
        excess: Most by which the error of a truncated expert can exceed that of the best approximation of its rank, as
            a share of the latter; certified while it was made (see ``kc``). None where tokens whitened it.
        error: Relative error of what the merged layer adds behind its norm, on calibration tokens; None without them.
        spectra: What is known of the singular values of each expert that was truncated, by name; nothing where tokens
            whitened it, for the directions are the tokens' then.
    """

    scale: float | None
    energy: float
    excess: float | None = 0.0
    error: float | None = None
    spectra: dict[str, kc.Spectrum] = field(default_factory=dict)


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
    check_stored(config, reader.weight_bytes, str(reader.path))
    return config


@cache
def shapes(config: RingMoEConfig) -> Mapping[str, tuple[int, ...]]:
    """Global name and shape of every tensor that a model has, without storage."""
    with torch.device("meta"):
        model = build_model(config)
    return MappingProxyType({entry.name: tuple(entry.tensor.shape) for entry in canonical_entries(model)})


def sources(plan: CompressionPlan, name: str) -> tuple[str, ...]:
    """The checkpoint's tensors that one tensor of the result is made of."""
    block = _merged_block(plan, name)
    if block is None:
        return (name,)
    layer, _, attribute = name.rpartition(".shared.")
    return tuple(f"{layer}.{expert.name}.{attribute}" for expert in block.merged)


def make(plan: CompressionPlan, reader: CheckpointReader, name: str, device: torch.device | str = "cpu") -> Made:
    """Makes one tensor of the result: merged, some columns of its source, or the source itself.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for; each source tensor is read once.
        name: Global name of the tensor.
        device: Where it is computed.

    Returns:
        The tensor, on ``device`` where it is merged and on the CPU else, in the type of its source.

    Raises:
        CheckpointError: A source is missing, or is not finite.
    """
    block = _merged_block(plan, name)
    if block is not None:
        return _merged(plan, reader, block, name, device)
    tensor = read(reader, name)
    layer, _, part = name.partition(".moe.")
    if part.startswith("router.collaborative."):
        block = plan.blocks[int(layer.removeprefix("blocks."))]
        ids = plan.source.collaborative_ids(block.block)
        tensor = tensor[:, [ids.index(k) for k in block.kept]]
    return Made(name, tensor)


def _merged_block(plan: CompressionPlan, name: str) -> BlockPlan | None:
    """The block whose experts become one FFN that this tensor is a part of."""
    layer, inside, _ = name.partition(".moe.")
    block = plan.blocks[int(layer.removeprefix("blocks."))] if inside else None
    return block if block is not None and block.merged else None


def _merged(
    plan: CompressionPlan, reader: CheckpointReader, block: BlockPlan, name: str, device: torch.device | str
) -> Made:
    """W_1, b_1, W_2 or b_2 of the one FFN that a block's experts become (Eqs. 11 and 17)."""
    attribute = name.rpartition(".")[2]
    is_matrix = attribute in ("w1", "w2")
    shared_norm = 0.0

    def tensors() -> Iterator[Tensor]:
        nonlocal shared_norm
        for expert, source in zip(block.merged, sources(plan, name), strict=True):
            tensor = read(reader, source).to(device)
            if expert.name == "shared":
                shared_norm = kc.norm(tensor)
            yield tensor

    energy, excess = 1.0, 0.0
    spectra: dict[str, kc.Spectrum] = {}
    if plan.options.mode == "ks":
        total = ks.merge(tensors())
    elif plan.options.mode == "ka":
        total = ka.merge(tensors())
    else:
        ranks = [expert.rank if is_matrix else None for expert in block.merged]
        try:
            total, energy, excess, found = kc.merge(zip(tensors(), ranks, strict=True))
        except ArithmeticError as error:
            raise CheckpointError(f"{reader.path}: {name}: {error}") from error
        named = zip(block.merged, found, strict=True)
        spectra = {expert.name: spectrum for expert, spectrum in named if spectrum is not None}
    dtype = reader.manifest.tensors[sources(plan, name)[0]].dtype
    scale = kc.norm(total) / shared_norm if shared_norm else None
    merge = Merge(scale, energy, excess, spectra=spectra) if is_matrix else None
    return Made(name, total.to(getattr(torch, dtype)), merge)


def read(reader: CheckpointReader, name: str) -> Tensor:
    """One tensor of a checkpoint.

    Raises:
        CheckpointError: It is missing, damaged, or not finite.
    """
    tensor = reader.tensor(name)
    check_finite(reader, name, tensor)
    return tensor


def check_finite(reader: CheckpointReader, name: str, tensor: Tensor) -> None:
    """Refuses weights that are not numbers.

    Raises:
        CheckpointError: At least one value is not finite.
    """
    if math.isfinite(tensor.sum().item()):
        return  # one infinity or NaN would have made the sum another; far quicker than looking at each value
    num = int((~torch.isfinite(tensor)).sum())
    if num:
        raise CheckpointError(
            f"{reader.path}: {num} of {tensor.numel()} values of {name} are not finite; take an earlier checkpoint"
        )
