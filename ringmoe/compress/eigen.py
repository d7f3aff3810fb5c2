"""Leading eigenvectors of Gram matrices: LAPACK's partial solver on the CPU, the full one on a GPU.

SciPy finds the leading ones alone, torch always all of them.
"""

from collections.abc import Iterable

import numpy as np
import torch
from scipy.linalg import LinAlgError, blas, eigh
from torch import Tensor

# S the short side, P columns of a panel of the long side, K the rank


def gram(panels: Iterable[Tensor], size: int) -> Tensor:
    """The sum of ``p_SP @ p_SP.T`` over panels of a matrix; of the result the lower triangle counts, and it alone.

    Args:
        panels: Float32 or float64 matrices of ``size`` rows, all of one type and on one device.
        size: S.
    """
    total_SS: Tensor | None = None
    for panel_SP in panels:
        if total_SS is None:
            total_SS = torch.zeros(size, size, dtype=panel_SP.dtype, device=panel_SP.device)
        if panel_SP.device.type == "cpu":
            _add_half(total_SS, panel_SP)
        else:
            total_SS.addmm_(panel_SP, panel_SP.T)
    if total_SS is None:
        raise ValueError("no panels")
    return total_SS


def leading(gram_SS: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The ``k`` largest eigenvalues, ascending, and their eigenvectors; None where the solver does not converge.

    Args:
        gram_SS: A symmetric matrix, of which the lower triangle is read; it may be overwritten.
        k: 1 to S.
    """
    try:
        return by_lapack(gram_SS, k) if gram_SS.device.type == "cpu" else by_torch(gram_SS, k)
    except (LinAlgError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return None


def by_lapack(gram_SS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See ``leading``; on the CPU."""
    size = len(gram_SS)
    # the transposed view is in LAPACK's order, so nothing is copied, and our lower triangle is its upper one
    values, vectors = eigh(
        gram_SS.numpy().T,
        lower=False,
        overwrite_a=True,
        check_finite=False,
        subset_by_index=(size - k, size - 1),
        driver="evr",
    )
    return torch.from_numpy(values), torch.from_numpy(np.ascontiguousarray(vectors))


def by_torch(gram_SS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See ``leading``; on any device."""
    values_S, vectors_SS = torch.linalg.eigh(gram_SS)
    return values_S[-k:], vectors_SS[:, -k:].contiguous()


def _add_half(total_SS: Tensor, panel_SP: Tensor) -> None:
    """Adds the lower triangle of ``p_SP @ p_SP.T`` in place, at half the cost of the whole."""
    rank_k = blas.ssyrk if panel_SP.dtype == torch.float32 else blas.dsyrk
    rank_k(1.0, panel_SP.contiguous().numpy().T, beta=1.0, c=total_SS.numpy().T, trans=1, lower=0, overwrite_c=1)
