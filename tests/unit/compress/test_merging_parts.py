"""The pure functions beyond the paper, by identities: alignment, whitening, refit, weighting."""

import pytest
import torch

from ringmoe.compress import align, kc, whiten
from ringmoe.compress.ffn import FFN
from ringmoe.compress.refit import NormalEquations
from ringmoe.compress.weighting import frequencies, weights
from ringmoe.errors import ConfigError
from ringmoe.moe.usage import Usage


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed=0, *, dim=6, hidden=20):
    return FFN(draw(dim, hidden, seed=seed), draw(hidden, seed=seed + 1), draw(hidden, dim, seed=seed + 2), draw(dim))


def test_the_order_of_hidden_units_does_not_change_what_an_expert_computes():
    ffn, x_TD = network(), draw(11, 6, seed=9)
    shuffled = align.permuted(ffn, torch.randperm(20, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(shuffled.w1_DF, ffn.w1_DF)
    torch.testing.assert_close(shuffled(x_TD), ffn(x_TD))


def test_a_planted_order_is_found_by_weights_and_by_activations():
    ffn, x_TD = network(), draw(200, 6, seed=9)
    noisy = FFN(*(part + 0.05 * draw(*part.shape, seed=7) for part in ffn))
    shuffled = align.permuted(noisy, torch.randperm(20, generator=torch.Generator().manual_seed(3)))
    correlation = align.Correlation(20)
    for part_TD in x_TD.split(60):
        correlation.add(ffn.hidden(part_TD), shuffled.hidden(part_TD))
    for alike_FF in (align.alike_by_weights(ffn, shuffled), correlation.value()):
        found = align.permuted(shuffled, align.best_order(alike_FF))
        assert all(torch.equal(a, b) for a, b in zip(found, noisy, strict=True))


def test_units_that_never_change_correlate_with_nothing():
    correlation = align.Correlation(3)
    constant_TF = draw(40, 3).index_fill(1, torch.tensor([1]), 5.0)
    correlation.add(constant_TF, constant_TF)
    torch.testing.assert_close(correlation.value().diagonal(), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_white_tokens_give_the_plain_truncation():
    ffn = network()
    white_DD = torch.eye(6, dtype=torch.float64)
    inputs = whiten.truncate_inputs(ffn.w1_DF, 2, white_DD)
    outputs = whiten.truncate_outputs(ffn.w2_FD, 2, ffn.w2_FD.T @ ffn.w2_FD)
    for found, matrix in ((inputs, ffn.w1_DF), (outputs, ffn.w2_FD)):
        plain = kc.truncate(matrix, 2)
        torch.testing.assert_close(found.matrix, plain.matrix.double(), atol=1e-5, rtol=1e-5)
        assert found.energy == pytest.approx(plain.energy, abs=1e-5)


def test_the_whitened_truncation_is_the_best_for_the_outputs():
    ffn = network()
    x_TD = draw(300, 6, seed=5) * torch.tensor([9.0, 1.0, 0.1, 3.0, 0.0, 1.0], dtype=torch.float64)
    h_TF = ffn.hidden(x_TD)
    y_TD = h_TF @ ffn.w2_FD
    cases = [
        (x_TD, ffn.w1_DF, whiten.truncate_inputs(ffn.w1_DF, 2, x_TD.T @ x_TD)),
        (h_TF, ffn.w2_FD, whiten.truncate_outputs(ffn.w2_FD, 2, y_TD.T @ y_TD)),
    ]
    for tokens, matrix, found in cases:
        exact = tokens @ matrix
        best = torch.linalg.svdvals(exact)[2:].square().sum().sqrt()  # Eckart and Young, for the outputs
        assert torch.linalg.matrix_rank(found.matrix) == 2
        error = torch.linalg.vector_norm(exact - tokens @ found.matrix)
        torch.testing.assert_close(error, best, rtol=1e-4, atol=0)
        assert error < torch.linalg.vector_norm(exact - tokens @ kc.truncate(matrix, 2).matrix.double())


def test_enough_tokens_bring_back_the_planted_second_matrix():
    ffn, x_TD = network(), draw(500, 6, seed=4)
    equations = NormalEquations(20, 6)
    for part_TD in x_TD.split(130):
        equations.add(ffn.hidden(part_TD), ffn(part_TD))
    w2_FD, b2_D = equations.solve(1e-12)
    torch.testing.assert_close(w2_FD, ffn.w2_FD, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(b2_D, ffn.b2_D, atol=1e-6, rtol=1e-6)
    mean_D = equations.solve(1e9)[1]  # the bias is not weighed down: without W_2 it is the mean output
    torch.testing.assert_close(mean_D, ffn(x_TD).mean(0), atol=1e-6, rtol=1e-6)


def test_a_refit_on_fewer_tokens_than_units_is_refused():
    equations = NormalEquations(20, 6)
    equations.add(draw(19, 20), draw(19, 6))
    with pytest.raises(ConfigError, match="20 hidden units on 19 calibration tokens"):
        equations.solve(1e-3)


def test_equal_frequencies_are_equal_weights_and_the_shared_one_is_always_selected():
    assert weights([0.25] * 4) == (1.0,) * 4
    usage = Usage(
        modalities=("opt", "sar_l2"),
        num_specialised=2,
        counts=(((1, 3, 0, 4), (4, 0, 2, 2)),),
        tokens=((4, 4),),
        source="made up",
    )
    names = ["specialised.opt.0", "specialised.opt.1", "collaborative.0", "collaborative.1", "shared"]
    assert frequencies(usage, 0, ("opt",), names) == (0.25, 0.75, 0.0, 1.0, 1.0)
    both = frequencies(usage, 0, ("opt", "sar_l2"), ["specialised.sar_l2.0", "collaborative.1", "shared"])
    assert both == (0.5, 0.75, 1.0)
    assert weights(both) == pytest.approx((3 * 0.5 / 2.25, 3 * 0.75 / 2.25, 3 / 2.25))
