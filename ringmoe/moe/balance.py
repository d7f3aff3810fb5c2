"""Balance losses (Eqs. 4 and 8-10): pure functions of what the routers decided."""

import torch
from torch import Tensor

from ringmoe.batch import Routing

# M modalities, N experts of one family, E experts that one modality may choose from (specialised, then collaborative)


def balance_losses(routing: Routing, num_specialised: int) -> tuple[Tensor, Tensor]:
    """The balance losses of one layer (Eq. 8), which Eq. 4 adds up: L = collaborative + sum over m of specialised.

    Args:
        routing: The routing of one micro-batch.
        num_specialised: Columns of the routing that are specialised experts, N_S; the others are collaborative.

    Returns:
        collaborative: Scalar over the tokens of all modalities.
        specialised_M: (M,) one for each modality over its own tokens.
        A family of size 0 and a modality without tokens have the loss 0.
    """
    sections = [num_specialised, routing.counts_ME.shape[1] - num_specialised]
    counts_MS, counts_MC = torch.split(routing.counts_ME, sections, dim=1)
    probs_MS, probs_MC = torch.split(routing.probs_ME, sections, dim=1)
    collaborative = _balance(counts_MC.sum(0), probs_MC.sum(0), routing.tokens_M.sum())
    return collaborative, _balance(counts_MS, probs_MS, routing.tokens_M)


def _balance(counts_N: Tensor, probs_N: Tensor, tokens: Tensor) -> Tensor:
    """N * sum_k f_k P_k (Eq. 8) over the last dimension; f counts selections (Eq. 9), P is the mean of H (Eq. 10)."""
    tokens = tokens.clamp(min=1).unsqueeze(-1)
    return counts_N.shape[-1] * torch.sum(counts_N / tokens * (probs_N / tokens), dim=-1)
