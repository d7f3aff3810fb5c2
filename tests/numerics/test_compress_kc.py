"""Truncation against the float64 SVD (Eq. 9), on easy, ill-conditioned and rank-deficient matrices."""

import pytest
import torch

from ringmoe.compress import eigen, kc
from ringmoe.errors import ConfigError

D, F = 48, 192
I_D = torch.arange(1, D + 1, dtype=torch.float64)


def with_spectrum(values_S: torch.Tensor, *, shape: tuple[int, int] = (D, F), seed: int = 0) -> torch.Tensor:
    """A float32 matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    small = min(shape)
    left, right = (
        torch.linalg.qr(torch.randn(size, small, generator=generator, dtype=torch.float64))[0] for size in shape
    )
    return ((left * values_S) @ right.T).float()


def optimum(w_DF: torch.Tensor, k: int) -> float:
    """Error of the best rank-k approximation, by the singular values in float64."""
    return torch.linalg.svdvals(w_DF.double())[k:].square().sum().sqrt().item()


SPECTRA = {
    "flat": torch.ones(D, dtype=torch.float64),
    "slow decay": I_D**-0.5,
    "fast decay": I_D**-2,
    "faster decay": I_D**-4,
    "geometric to 1e-6": 10.0 ** (-6 * (I_D - 1) / (D - 1)),
    "one dominates": torch.cat((torch.ones(1, dtype=torch.float64), 1e-4 * I_D[1:] ** -0.5)),
    "deficient, above the rank": torch.where(I_D <= D // 2, I_D**-1, 0.0),
    "deficient, below the rank": torch.where(I_D <= D // 8, 1.0, 0.0).double(),
    "clustered": torch.where(I_D <= 20, 1.0, 1e-3).double(),
    "zero": torch.zeros(D, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(D, F), (F, D), (D, D)])
def test_error_is_within_a_thousandth_of_the_optimum(name, shape):
    w_DF = with_spectrum(SPECTRA[name], shape=shape)
    for k in (1, D // 4, D - 1):
        low = kc.truncate(w_DF, k)
        low_DF, energy = low.matrix, low.energy
        error = torch.linalg.norm(w_DF.double() - low_DF.double()).item()
        norm = torch.linalg.norm(w_DF.double()).item()
        # the second term is the resolution of float32 weights: what storing the result rounds away anyway
        assert error <= 1.001 * optimum(w_DF, k) + torch.finfo(torch.float32).eps * norm, (k, error)
        assert energy == pytest.approx(1 - (error / norm) ** 2 if norm else 1.0, abs=1e-5)
        assert torch.linalg.matrix_rank(low_DF.double(), rtol=1e-6) <= k


@pytest.mark.parametrize("name", SPECTRA)
def test_the_certificate_is_no_less_than_the_true_excess(name):
    w_DF = with_spectrum(SPECTRA[name])
    for k in (1, D // 4, D - 1):
        low = kc.truncate(w_DF, k)
        error, best = torch.linalg.norm(w_DF.double() - low.matrix.double()).item(), optimum(w_DF, k)
        assert 0 <= low.excess <= 1e-3
        if error > 1e-4 * torch.linalg.norm(w_DF):  # below that float64 cannot tell, and says so by 0
            assert error <= (1 + low.excess + 1e-6) * best


@pytest.mark.parametrize("name", SPECTRA)
def test_the_solver_of_gpus_finds_the_same(name, monkeypatch):
    w_DF = with_spectrum(SPECTRA[name])
    energy = kc.truncate(w_DF, 12).energy
    monkeypatch.setattr(eigen, "by_lapack", eigen.by_torch)
    low = kc.truncate(w_DF, 12)
    assert low.energy == pytest.approx(energy, abs=1e-6)
    assert low.excess <= 1e-3


def test_a_wrong_subspace_is_noticed(monkeypatch):
    solve = eigen.leading

    def off_by_one(gram_SS, k):
        found = solve(gram_SS, k + 1)
        return found[0][1:], found[1][:, :-1]

    monkeypatch.setattr(eigen, "leading", off_by_one)
    with pytest.raises(ArithmeticError, match="no rank-12 approximation"):
        kc.truncate(with_spectrum(SPECTRA["slow decay"]), 12)


def test_hard_spectra_are_what_float64_is_for():
    # the Gram matrix in float32 alone would miss the optimum here by far, so this pins the fallback
    w_DF = with_spectrum(SPECTRA["fast decay"])
    k = D // 4
    vectors_SS = torch.linalg.eigh(w_DF @ w_DF.T).eigenvectors
    naive_DF = vectors_SS[:, -k:] @ (vectors_SS[:, -k:].T @ w_DF)
    assert kc.truncate(w_DF, k).left_DK.dtype == torch.float64
    assert kc.truncate(with_spectrum(SPECTRA["slow decay"]), k).matrix.dtype == torch.float32
    assert torch.linalg.norm(w_DF - naive_DF).item() > optimum(w_DF, k)


def test_full_rank_leaves_the_matrix_itself():
    w_DF = with_spectrum(SPECTRA["slow decay"])
    assert torch.equal(kc.merge([(w_DF, D)])[0], w_DF.double())


def test_bfloat16_weights_are_truncated_in_float32():
    w_DF = with_spectrum(SPECTRA["slow decay"]).bfloat16()
    low_DF = kc.truncate(w_DF, 12).matrix
    error = torch.linalg.norm(w_DF.double() - low_DF.double()).item()
    assert error <= 1.001 * optimum(w_DF, 12)


def test_values_that_overflow_float32_squares_are_still_truncated():
    w_DF = with_spectrum(SPECTRA["slow decay"]) * 1e25
    low_DF = kc.truncate(w_DF, 12).matrix
    assert torch.linalg.norm(w_DF.double() - low_DF.double()).item() <= 1.001 * optimum(w_DF, 12)


def test_eq_10_concatenation_is_the_sum_of_the_truncated_experts():
    experts = [with_spectrum(I_D**-0.5, seed=seed) for seed in range(4)]
    shared = with_spectrum(I_D**-0.5, seed=9)
    k = D // 4
    factors = [torch.linalg.svd(w.double(), full_matrices=False) for w in experts]
    left = torch.cat([u[:, :k] for u, _, _ in factors], dim=1)
    middle = torch.block_diag(*(torch.diag(s[:k]) for _, s, _ in factors))
    right = torch.cat([vh[:k] for _, _, vh in factors])
    expected = left @ middle @ right + shared.double()
    merged, energy, _, spectra = kc.merge([*((w, k) for w in experts), (shared, None)])
    assert merged.dtype == torch.float64
    assert torch.allclose(merged, expected, atol=1e-6)
    least = min((s[:k].square().sum() / s.square().sum()).item() for _, s, _ in factors)
    assert energy == pytest.approx(least, abs=1e-6)
    assert spectra[-1] is None  # the shared one is whole
    for (_, s, _), spectrum in zip(factors, spectra[:-1], strict=True):
        assert (spectrum.places[0], spectrum.places[-1]) == (1, k)
        expected_shares = [s[place - 1].item() / s[0].item() for place in spectrum.places]
        assert spectrum.values == pytest.approx(expected_shares, rel=1e-3)
    assert min(spectrum.energy for spectrum in spectra[:-1]) == energy


@pytest.mark.parametrize(
    ("shape", "num", "rule", "expected"),
    [
        ((1792, 7168), 4, "small-side", 448),
        ((7168, 1792), 4, "small-side", 448),
        ((1792, 7168), 4, "literal", 1792),  # d2 / N with d2 = 4 d1: full rank
        ((1792, 7168), 8, "literal", 896),
        ((100, 400), 3, "small-side", 33),
        ((100, 400), 1, "literal", 100),
        ((100, 400), 4, 64, 64),
    ],
)
def test_rank_rules(shape, num, rule, expected):
    assert kc.rank(shape, num, rule) == expected


def test_ranks_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="rank 0: 5 experts share a matrix of 4 x 16"):
        kc.rank((4, 16), 5, "small-side")
    for number in (0, -1, 5):
        with pytest.raises(ConfigError, match=rf"rank {number} of a matrix of 4 x 16; expected 1 to 4"):
            kc.rank((4, 16), 2, number)
