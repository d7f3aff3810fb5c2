"""Window attention: who sees whom, the position bias, and what is kept between calls."""

import math

import pytest
import torch
from torch import nn

from ringmoe.layers.init import initialise
from ringmoe.layers.window_attention import WindowAttention, WindowGrid


def _attention(window=4, shifted=False, reference=None, dim=32):
    attention = WindowAttention(dim, 2, window=window, shifted=shifted, reference_window=reference or window)
    initialise(attention, 0)
    nn.init.normal_(attention.qkv.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return attention


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "window", "shifted"),
    [((8, 8), 4, False), ((8, 12), 4, True), ((7, 9), 4, True), ((3, 8), 4, True), ((2, 3), 5, True)],
)
def test_join_undoes_split(size, window, shifted):
    grid = WindowGrid.over(*size, window, shifted)
    x = _normal(2, *size, 3)
    assert torch.equal(grid.join(grid.split(x)), x)


def test_a_window_is_clipped_to_the_map_and_then_not_shifted():
    assert WindowGrid.over(6, 20, 12, shifted=True) == WindowGrid(6, 20, window=(6, 12), shift=(0, 6))
    assert WindowGrid.over(6, 20, 12, shifted=True).padding == (0, 4)
    assert WindowGrid.over(12, 12, 12, shifted=True).shift == (0, 0)


def _seen_by(attention, size, token):
    """(H, W) bool: inputs that the output at ``token`` depends on."""
    x = _normal(1, *size, 32).requires_grad_()
    attention(x)[0][token].sum().backward()
    return x.grad[0].abs().sum(-1) > 0


def test_a_token_sees_its_window_and_nothing_else():
    seen = _seen_by(_attention(), (8, 8), (5, 2))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, :4] = True
    assert torch.equal(seen, expected)


def test_shifted_windows_never_look_across_the_edge():
    seen = _seen_by(_attention(shifted=True), (8, 8), (0, 7))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, 6:] = True
    assert torch.equal(seen, expected)
    assert _seen_by(_attention(shifted=True), (8, 8), (4, 3)).sum() == 16


def test_attention_against_the_formula_token_by_token():
    attention = _attention(window=3)
    x = _normal(1, 3, 3, 32)
    q, k, v = (attention.qkv(x.view(9, 32)) + 0.0).view(9, 3, 2, 16).unbind(1)
    coordinates = [(row, col) for row in range(3) for col in range(3)]

    def log_spaced(offset):
        return math.copysign(math.log2(1 + abs(8 * offset / 2)) / math.log2(8), offset)

    rows = []
    for i, (row, col) in enumerate(coordinates):
        heads = []
        for head in range(2):
            logits = []
            for j, (other_row, other_col) in enumerate(coordinates):
                offset = torch.tensor([log_spaced(row - other_row), log_spaced(col - other_col)])
                bias = 16 * attention.position_bias(offset)[head].sigmoid()
                cosine = torch.cosine_similarity(q[i, head], k[j, head], dim=0)
                logits.append(cosine * 10.0 + bias)
            heads.append(torch.stack(logits).softmax(0) @ v[:, head])
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x).view(9, 32), attention.proj(torch.stack(rows)), atol=1e-5, rtol=1e-5)


def test_the_logit_scale_stops_at_one_hundred():
    attention, x = _attention(), _normal(1, 4, 4, 32)
    attention.logit_scale.data.fill_(math.log(100.0))
    expected = attention(x)
    attention.logit_scale.data.fill_(9.0)
    torch.testing.assert_close(attention(x), expected)


def test_position_bias_of_another_window_is_the_same_function():
    small, large = (_attention(window=side, reference=4) for side in (4, 8))
    bias_small = small._bias(WindowGrid.over(4, 4, 4, False))[0]
    bias_large = large._bias(WindowGrid.over(8, 8, 8, False))[0].view(2, 8, 8, 8, 8)
    torch.testing.assert_close(bias_large[:, :4, :4, :4, :4].reshape(2, 16, 16), bias_small)


def test_tables_first_made_in_inference_serve_a_later_training_step():
    attention = _attention(window=5, shifted=True)
    with torch.inference_mode():
        attention(_normal(1, 10, 10, 32))
    attention(_normal(1, 10, 10, 32)).sum().backward()
    assert attention.position_bias[0].weight.grad.abs().sum() > 0
