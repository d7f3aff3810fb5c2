"""Knowledge compressing: experts are truncated by SVD, then added up (Eqs. 9-11).

Eq. 10's product of concatenated factors is the sum of the truncated experts, so nothing is concatenated here.

The best rank-K approximation needs no SVD: the leading K eigenvectors of the Gram matrix of the short side span it.
Squaring the singular values costs precision, so every truncation in float32 is certified: its error is measured, the
optimum is bounded from below, and where they are not within 0.1 % of each other it is made again in float64, whose
reach (1e-8 of the largest singular value) is finer than float32 weights themselves.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ringmoe.compress import eigen, ks
from ringmoe.errors import ConfigError

# D the first dimension, F the second, S the smaller of both and L the longer, P columns of a panel of L, K the rank

RankRule = Literal["small-side", "literal"]

_TOLERANCE = 1e-3  # most that the error of a truncation may exceed the optimum
_UNRESOLVED = 1e-8  # share of the squared norm below which float64 cannot certify that much
_PLACES = 24  # most singular values of a matrix that are told, those at the ends among them
_PANEL = 512  # rows or columns that are held in the precision of the arithmetic at a time
# Each computed eigenvalue is within the norm of the Gram matrix's rounding error of the exact one (Weyl). So many
# units of rounding of the largest eigenvalue stand for the norm; tests/numerics/test_compress_kc.py holds the
# certificates that follow against float64, spectrum by spectrum.
_ROUNDINGS = 8


class Truncation(NamedTuple):
    """A matrix of lower rank, as two factors.

    Attributes:
        left_DK: First factor.
        right_KF: Second factor. The factor of the short side has orthonormal columns or rows.
        energy: Share of the squared Frobenius norm that it retains, 0 to 1.
        excess: Most by which its error can exceed that of the best approximation of this rank, as a share of the
            latter; 0 where the error is too small for float64 to tell, below 1e-4 of the norm.
        values_K: The singular values that it keeps, descending; the solver does not look at the others.
    """

    left_DK: Tensor
    right_KF: Tensor
    energy: float
    excess: float
    values_K: Tensor

    @property
    def matrix(self) -> Tensor:
        """The approximation."""
        return self.left_DK @ self.right_KF

    @property
    def spectrum(self) -> "Spectrum":
        """What pictures need of it."""
        num = len(self.values_K)
        places = sorted({round(num ** (step / (_PLACES - 1))) for step in range(_PLACES)})
        all_values = self.values_K.tolist()
        shares = (all_values[place - 1] / (all_values[0] or 1.0) for place in places)
        return Spectrum(tuple(places), tuple(float(f"{share:.4g}") for share in shares), self.energy)


@dataclass(frozen=True)
class Spectrum:
    """Some of the singular values that a truncated matrix keeps.

    Attributes:
        places: Which they are, the largest being 1 and the last the rank; the further on, the fewer.
        values: The values, as shares of the largest.
        energy: Share of the squared Frobenius norm that the truncation retains.
    """

    places: tuple[int, ...]
    values: tuple[float, ...]
    energy: float


class Merged(NamedTuple):
    """A sum of matrices after truncation.

    Attributes:
        total: The sum, float64.
        energy: The least energy that a truncated expert retained; 1 where none was truncated.
        excess: The largest excess of an error over the optimum; 0 where none was truncated.
        spectra: Of each expert in its turn; None where it was left whole.
    """

    total: Tensor
    energy: float
    excess: float
    spectra: tuple[Spectrum | None, ...]


def rank(shape: tuple[int, int], num_experts: int, rule: RankRule | int) -> int:
    """The rank K that an expert of a family of ``num_experts`` keeps.

    Args:
        shape: d1 and d2.
        num_experts: N_S or N_C.
        rule: ``small-side``: K = min(d1, d2) / N. ``literal``: K = d2 / N as printed below Eq. 9, with d2 the hidden
            width of the FFN; for N = 4 and a hidden width of 4 d1 this is full rank, and KC is KS. A number is K.

    Raises:
        ConfigError: The family has more experts than the matrix has dimensions, or the number is 0 or beyond them.
    """
    small = min(shape)
    if isinstance(rule, int):
        if not 1 <= rule <= small:
            raise ConfigError(f"rank {rule} of a matrix of {shape[0]} x {shape[1]}; expected 1 to {small}")
        return rule
    k = (small if rule == "small-side" else max(shape)) // num_experts
    if k == 0:
        raise ConfigError(f"rank 0: {num_experts} experts share a matrix of {shape[0]} x {shape[1]}; use ks or ka")
    return min(k, small)


def truncate(w_DF: Tensor, k: int) -> Truncation:
    """The best approximation of rank ``k`` in the Frobenius norm (Eq. 9).

    Args:
        w_DF: Any float matrix.
        k: Rank, 1 to S.

    Returns:
        The approximation, float32 (float64 where the spectrum asks for it); its error is within 0.1 % of the
        optimum or below the resolution of float32 weights.

    Raises:
        ArithmeticError: The eigenvectors are not right even in float64: weights that are not finite, or a fault of
            the solver.
    """
    found = _truncate(w_DF, k, torch.float32)
    if found is not None and found.excess <= _TOLERANCE:
        return found
    found = _truncate(w_DF, k, torch.float64)
    if found is None or (found.excess > _TOLERANCE and 1 - found.energy > _UNRESOLVED):
        raise ArithmeticError(f"no rank-{k} approximation of a matrix of {w_DF.shape[0]} x {w_DF.shape[1]} is found")
    return found if found.excess <= _TOLERANCE else found._replace(excess=0.0)


def merge(experts: Iterable[tuple[Tensor, int | None]]) -> Merged:
    """Adds up experts after truncation: W = M^S + M^C + W^Shared (Eq. 11).

    Args:
        experts: The same tensor of each expert with the rank that it keeps; None leaves it whole (the shared expert,
            and biases, which follow the rule of KS), and so does full rank. They are taken one at a time.
    """
    total: Tensor | None = None
    energy, excess = 1.0, 0.0
    spectra: list[Spectrum | None] = []
    for tensor, k in experts:
        if total is None:
            total = torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
        if k is None or k == min(tensor.shape):
            ks.add(total, tensor)
            spectra.append(None)
            continue
        low = truncate(tensor, k)
        for total_PF, left_PK in zip(torch.split(total, _PANEL), torch.split(low.left_DK, _PANEL), strict=True):
            total_PF.add_(left_PK @ low.right_KF)
        energy, excess = min(energy, low.energy), max(excess, low.excess)
        spectra.append(low.spectrum)
    if total is None:
        raise ValueError("no experts to merge")
    return Merged(total, energy, excess, tuple(spectra))


def norm(w_DF: Tensor) -> float:
    """The Frobenius norm in float64, without a copy of the matrix in that type."""
    squares = (
        torch.linalg.vector_norm(part_PF, dtype=torch.float64).item() ** 2 for part_PF in torch.split(w_DF, _PANEL)
    )
    return math.sqrt(sum(squares))


def _truncate(w_DF: Tensor, k: int, dtype: torch.dtype) -> Truncation | None:
    """The truncation in one precision, with its certificate; None where the precision does not do."""
    wide = w_DF.shape[0] <= w_DF.shape[1]
    w_SL = w_DF if wide else w_DF.T
    total = norm(w_DF) ** 2
    gram_SS = eigen.gram(_panels(w_SL, dtype), len(w_SL))
    if not gram_SS.diagonal().isfinite().all() or (leading := eigen.leading(gram_SS, k)) is None:
        return None
    values_K, basis_SK = leading
    right_KL = basis_SK.new_empty(k, w_SL.shape[1])
    for right_KP, panel_SP in zip(torch.split(right_KL, _PANEL, dim=1), _panels(w_SL, dtype), strict=True):
        right_KP.copy_(basis_SK.T @ panel_SP)
    energy, excess = _certificate(values_K, basis_SK, right_KL, total)
    factors = (basis_SK, right_KL) if wide else (right_KL.T, basis_SK.T)
    return Truncation(*factors, energy, excess, values_K.clamp(min=0).sqrt().flip(0))


def _panels(w_SL: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    for panel_SP in torch.split(w_SL, _PANEL, dim=1):
        yield panel_SP.to(dtype)


def _certificate(values_K: Tensor, basis_SK: Tensor, right_KL: Tensor, total: float) -> tuple[float, float]:
    """Retained energy, measured, and the most by which the error can exceed the optimum.

    With B the basis as computed, not quite orthonormal, and C = B^T W, the error of BC is
    |W|^2 - 2 |C|^2 + |BC|^2, where the rows of C are orthogonal but for rounding. The optimum is |W|^2 less the K
    largest eigenvalues (Eckart and Young), each of them at most its computed value and the rounding of the Gram matrix.
    """
    rows_K = torch.linalg.vector_norm(right_KL, dim=1, dtype=torch.float64).square()
    columns_K = torch.linalg.vector_norm(basis_SK, dim=0, dtype=torch.float64).square()
    error = max(0.0, total - 2 * rows_K.sum().item() + (rows_K * columns_K).sum().item())
    slack = _ROUNDINGS * torch.finfo(values_K.dtype).eps * len(values_K) * values_K[-1].item()
    optimum = total - values_K.sum(dtype=torch.float64).item() - slack
    energy = 1 - error / total if total > 0 else 1.0
    return energy, max(0.0, math.sqrt(error / optimum) - 1) if optimum > 0 else math.inf
