"""Merging a layer as a whole, its experts side by side and, where asked for, its calibration tokens at hand.

The paper's modes work tensor by tensor. What is here needs more of a layer at a time: the order of hidden units is
common to W_1, b_1 and W_2 of an expert, and a refit needs the merged W_1 before it solves for W_2.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress import align, kc
from ringmoe.compress.apply import Merge, read
from ringmoe.compress.extensions import DEFAULT_RIDGE
from ringmoe.compress.ffn import FFN, PARTS
from ringmoe.compress.plan import BlockPlan, CompressionPlan, MergedExpert
from ringmoe.compress.refit import NormalEquations
from ringmoe.compress.walk import Tokens, Walk
from ringmoe.compress.whiten import truncate_inputs, truncate_outputs
from ringmoe.errors import CheckpointError

# T tokens, D width of a token, F hidden width


class MergedLayer(NamedTuple):
    """What the experts of a layer became.

    Attributes:
        ffn: The one FFN, float32.
        merges: What merging did to W_1 and W_2, but for their scale.
    """

    ffn: FFN
    merges: dict[str, Merge]


class Layers:
    """Makes the merged FFN of one block after the other, in their order.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for.
        walk: Calibration tokens, for a plan that needs them.
    """

    def __init__(self, plan: CompressionPlan, reader: CheckpointReader, walk: Walk | None = None) -> None:
        if plan.options.extensions.walks and walk is None:
            raise ValueError("such a plan is carried out on calibration tokens")
        self._plan, self._reader, self._walk = plan, reader, walk
        self._extensions = plan.options.extensions
        self._last: tuple[int, MergedLayer] | None = None

    @torch.no_grad()
    def __call__(self, block: BlockPlan) -> MergedLayer:
        """The merged FFN of a block; the last one is remembered.

        Raises:
            CheckpointError: A tensor is missing, damaged or not finite, or a decomposition fails.
            ConfigError: There are too few calibration tokens for the refit.
        """
        if self._last is None or self._last[0] != block.block:
            self._last = None
            try:
                self._last = (block.block, self._made(block))
            except (ArithmeticError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                raise CheckpointError(
                    f"{self._reader.path}: the experts of block {block.block} cannot be merged with "
                    f"{self._extensions}: {error}. Raise --ridge where there is a refit, or leave an option out"
                ) from error
        return self._last[1]

    def _made(self, block: BlockPlan) -> MergedLayer:
        tokens = self._walk.enter(block.block) if self._walk else []
        ffn, merges = self._merged(block, tokens)
        if self._extensions.refit:
            equations = NormalEquations(*ffn.w2_FD.shape)
            for some in tokens:
                equations.add(ffn.hidden(some.inputs), some.y_TD)
            w2_FD, b2_D = equations.solve(self._extensions.ridge or DEFAULT_RIDGE)
            ffn = ffn._replace(w2_FD=w2_FD.float(), b2_D=b2_D.float())
        error = self._walk.leave(ffn) if self._walk else None
        return MergedLayer(ffn, {part: replace(merge, error=error) for part, merge in merges.items()})

    def _merged(self, block: BlockPlan, tokens: list[Tokens]) -> tuple[FFN, dict[str, Merge]]:
        """The sum of a block's experts (Eqs. 11 and 17), each aligned, truncated and weighed as the plan says."""
        reference = self._expert(block, block.merged[-1])  # the shared one where there is one
        inputs_DD = _moment([some.inputs for some in tokens]) if self._extensions.whiten else None
        total: list[Tensor] = []
        merges = {part: Merge(scale=None, energy=1.0) for part in ("w1", "w2")}
        for expert in block.merged:
            ffn = reference if expert is block.merged[-1] else self._expert(block, expert)
            if self._extensions.align and expert is not block.merged[-1]:
                ffn = align.permuted(ffn, align.best_order(self._alike(reference, ffn, tokens)))
            if expert.rank is not None and expert.rank < block.dim:
                ffn = _truncated(ffn, expert, inputs_DD, tokens, merges)
            total = total or [torch.zeros_like(part, dtype=torch.float64) for part in ffn]
            for so_far, part in zip(total, ffn, strict=True):
                so_far.add_(part.double(), alpha=expert.weight)
        scale = 1 / len(block.merged) if self._plan.options.mode == "ka" else 1.0
        return FFN(*(part.mul_(scale).float() for part in total)), merges

    def _expert(self, block: BlockPlan, expert: MergedExpert) -> FFN:
        names = (f"blocks.{block.block}.moe.{expert.name}.{part}" for part in PARTS)
        return FFN(*(read(self._reader, name).float() for name in names))

    def _alike(self, reference: FFN, ffn: FFN, tokens: list[Tokens]) -> Tensor:
        if self._extensions.align == "weights":
            return align.alike_by_weights(reference, ffn)
        correlation = align.Correlation(len(ffn.b1_F))
        for some in tokens:
            correlation.add(reference.hidden(some.inputs), ffn.hidden(some.inputs))
        return correlation.value()


def _truncated(
    ffn: FFN, expert: MergedExpert, inputs_DD: Tensor | None, tokens: list[Tokens], merges: dict[str, Merge]
) -> FFN:
    """An expert with W_1 and W_2 of lower rank; ``merges`` learns what was retained."""
    low: list[tuple[Tensor, float, float | None]]
    rank = expert.rank
    assert rank is not None, "the caller leaves whole what keeps its rank"
    if inputs_DD is None:
        plain = kc.truncate(ffn.w1_DF, rank), kc.truncate(ffn.w2_FD, rank)
        low = [(each.matrix, each.energy, each.excess) for each in plain]
        for part, each in zip(merges, plain, strict=True):
            merges[part].spectra[expert.name] = each.spectrum
    else:
        outputs_DD = _moment([ffn.hidden(some.inputs) @ ffn.w2_FD for some in tokens])
        white = truncate_inputs(ffn.w1_DF, rank, inputs_DD), truncate_outputs(ffn.w2_FD, rank, outputs_DD)
        low = [(each.matrix, each.energy, None) for each in white]
    for part, (_, energy, excess) in zip(merges, low, strict=True):
        so_far = merges[part]
        most = None if excess is None or so_far.excess is None else max(so_far.excess, excess)
        merges[part] = replace(so_far, energy=min(so_far.energy, energy), excess=most)
    return ffn._replace(w1_DF=low[0][0], w2_FD=low[1][0])


def _moment(parts: list[Tensor]) -> Tensor:
    """(D, D) sum of x^T x over (T, D) parts, in float64."""
    total_DD = torch.zeros(parts[0].shape[1], parts[0].shape[1], dtype=torch.float64)
    for part_TD in parts:
        total_DD.addmm_(part_TD.double().T, part_TD.double())
    return total_DD
