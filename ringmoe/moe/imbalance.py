"""How unevenly experts and ranks are loaded: from 1, where all do the same, to N, where one of N does everything."""

from collections.abc import Sequence

import torch
from torch import Tensor

# L layers, M modalities, E experts that one modality may choose from (specialised, then collaborative), P ranks that
# share the experts, N experts of one family

_DEAD = 0.01  # share of the mean of its family


def imbalance(
    counts_LME: Tensor, *, num_specialised: int, collaborative_L: Tensor, expert_parallel: int
) -> dict[str, Tensor]:
    """Tokens of the busiest over the mean, of each family that there is and of ranks that share the experts.

    A modality's specialised experts are compared with each other alone: how many images it has is no fault of theirs.

    Args:
        counts_LME: (L, M, E) selections, those of all ranks added up; experts that were pruned have 0.
        num_specialised: Columns that are specialised experts, N_S.
        collaborative_L: (L,) collaborative experts that each layer still has.
        expert_parallel: Ranks that share the experts, as ``ExpertParallel`` places them; where several groups of ranks
            hold the same experts, their rows are added up.

    Returns:
        ``specialised`` (layers times modalities), ``collaborative`` and ``ranks`` (layers): one ratio for each that saw
        a token; what saw none is left out.
    """
    counts_LE = counts_LME.sum(1)
    num_collaborative = counts_LE.shape[1] - num_specialised
    ratios = {}
    if num_specialised:
        ratios["specialised"] = _max_over_mean(counts_LME[..., :num_specialised].flatten(0, 1), num_specialised)
    if num_collaborative:
        ratios["collaborative"] = _max_over_mean(counts_LE[:, num_specialised:], collaborative_L)
    if expert_parallel > 1:
        ratios["ranks"] = _max_over_mean(counts_LE.view(len(counts_LE), -1, expert_parallel).sum(1), expert_parallel)
    return {name: ratio_X for name, ratio_X in ratios.items() if len(ratio_X)}


def dead_experts(
    counts_LME: Tensor, *, modalities: Sequence[str], num_specialised: int, collaborative: Sequence[Sequence[int]]
) -> list[str]:
    """Experts that got less than a hundredth of the mean of their family.

    Args:
        counts_LME: As in ``imbalance``, over enough steps.
        modalities: Keys in the model's order.
        num_specialised: As in ``imbalance``.
        collaborative: Ids of the collaborative experts of each layer.

    Returns:
        Their global names.
    """
    dead = []
    for layer, (counts_ME, ids) in enumerate(zip(counts_LME, collaborative, strict=True)):
        families = [(f"specialised.{key}", counts_ME[m], range(num_specialised)) for m, key in enumerate(modalities)]
        shared_E = counts_ME[:, num_specialised:].sum(0)
        for family, counts_E, members in (*families, ("collaborative", shared_E, ids)):
            counts = [counts_E[k].item() for k in members]
            least = _DEAD * sum(counts) / max(len(counts), 1)
            dead += [f"blocks.{layer}.moe.{family}.{k}" for k, num in zip(members, counts, strict=True) if num < least]
    return dead


def _max_over_mean(counts_XN: Tensor, number: Tensor | int) -> Tensor:
    """Ratio of each row that is not empty; ``number`` of its columns are there."""
    ratio_X = counts_XN.amax(1) * number / counts_XN.sum(1)
    return ratio_X[torch.isfinite(ratio_X)]
