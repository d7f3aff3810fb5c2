"""Flat buffers are those that DeepSpeed makes: its own grouping and partition rules, done again the slow way."""

import pytest

from ringmoe.models import PRESETS, preset
from ringmoe.plan.parameters import FlatBuffer, LocalParameter, flat_buffers, local_parameters
from ringmoe.train.optim import decays


@pytest.mark.parametrize("name", PRESETS)
def test_ranks_together_hold_the_model(name):
    model = preset(name)
    for size in (1, 2, 4) if model.num_routed else (1,):
        parameters = local_parameters(model, size, decays)
        shared = sum(p.numel for p in parameters if not p.spread)
        spread = sum(p.numel for p in parameters if p.spread)
        assert shared + size * spread == model.num_params()


def _slow_reduced(buffer: FlatBuffer, place: int) -> int:
    """DeepSpeed's rule: a parameter is in a part in which it begins, or that it reaches into; then zeros."""
    start, end = place * buffer.part, (place + 1) * buffer.part
    begin, whole, filled = 0, 0, 0
    for size in buffer.sizes:
        if start <= begin < end or begin < start < begin + size:
            whole += size
            filled += min(begin + size, end) - max(begin, start)
        begin += size
    return whole + buffer.part - filled


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1), (100, 3, 7, 7, 250, 1), (2, 4, 8, 16)])
def test_parts_are_equal_and_gradients_are_of_whole_parameters(sizes, ranks):
    buffer = FlatBuffer(sizes, ranks, spread=False)
    assert buffer.padded == buffer.part * ranks
    assert 0 <= buffer.padded - sum(sizes) < 2 * ranks
    assert [buffer.reduced(place) for place in range(ranks)] == [_slow_reduced(buffer, p) for p in range(ranks)]


def test_experts_are_grouped_as_deepspeed_limits_them():
    sizes = [100_000_000, 78_956_971, 1, 200_000_000, 5]
    experts = (LocalParameter("experts", size, 1, decays=True, spread=True) for size in sizes)
    parameters = (*experts, LocalParameter("norm", 9, 1, decays=False, spread=False))
    buffers = flat_buffers(parameters, 8, 4)
    assert [buffer.sizes for buffer in buffers] == [(9,), (100_000_000, 78_956_971), (1,), (200_000_000,), (5,)]
    assert [(buffer.ranks, buffer.spread) for buffer in buffers] == [(8, False)] + [(2, True)] * 4
