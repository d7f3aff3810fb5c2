"""Whitened that is best for the outputs of a matrix on calibration tokens, not for its entries.

The plain truncation of KC (Eq. 9) treats all directions of the input as equal; tokens are not. The least squared
error of x W over tokens x is that of the truncated SVD of L^T W, where L L^T is the second moment of the tokens (Chen
et al., "DRONE", 2021; Wang et al., "SVD-LLM", 2024). Where the short side is the output's, its directions are chosen
directly: W Q Q^T, with Q the leading eigenvectors of the second moment of x W. White tokens give the plain truncation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# D width of a token, F hidden width (the longer side), K rank

_RIDGE = 1e-6  # of the mean square of an input: directions that calibration tokens hardly have are not lost in rounding


class Whitened(NamedTuple):
    """A matrix of lower rank.

    Attributes:
        matrix: Float64.
        energy: Share of the squares of its outputs that it retains, 0 to 1.
    """

    matrix: Tensor
    energy: float


def truncate_inputs(w1_DF: Tensor, k: int, inputs_DD: Tensor) -> Whitened:
    """The matrix of rank ``k`` whose outputs x W_1 are nearest on tokens of a given second moment.

    Args:
        w1_DF: (D, F), D at most F.
        k: Rank, 1 to D; at D the matrix comes back as it is.
        inputs_DD: (D, D) sum or mean of x^T x over the tokens.

    Returns:
        The matrix, and what it retains.
    """
    dim = len(inputs_DD)
    if k == dim:
        return Whitened(w1_DF, 1.0)
    inputs_DD = inputs_DD.double()
    ridge = _RIDGE * inputs_DD.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    lower_DD = torch.linalg.cholesky(inputs_DD + ridge * torch.eye(dim, dtype=torch.float64, device=inputs_DD.device))
    scaled_DF = lower_DD.T @ w1_DF.double()
    values_D, vectors_DD = torch.linalg.eigh(scaled_DF @ scaled_DF.T)
    basis_DK = vectors_DD[:, -k:]
    low_DF = torch.linalg.solve_triangular(lower_DD.T, basis_DK @ (basis_DK.T @ scaled_DF), upper=True)
    return Whitened(low_DF, _share(values_D, k))


def truncate_outputs(w2_FD: Tensor, k: int, outputs_DD: Tensor) -> Whitened:
    """The matrix of rank ``k`` whose outputs h W_2 are nearest on hidden values that gave a second moment of outputs.

    Args:
        w2_FD: (F, D), D at most F.
        k: Rank, 1 to D; at D the matrix comes back as it is.
        outputs_DD: (D, D) sum or mean of y^T y over the tokens, y = h W_2 without its bias.

    Returns:
        The matrix, and what it retains.
    """
    if k == len(outputs_DD):
        return Whitened(w2_FD, 1.0)
    values_D, vectors_DD = torch.linalg.eigh(outputs_DD.double())
    basis_DK = vectors_DD[:, -k:]
    return Whitened(w2_FD.double() @ basis_DK @ basis_DK.T, _share(values_D, k))


def _share(values_D: Tensor, k: int) -> float:
    """Share of the ``k`` largest of ascending eigenvalues; 1 where all are 0."""
    total = values_D.sum().item()
    return values_D[-k:].sum().item() / total if total > 0 else 1.0
