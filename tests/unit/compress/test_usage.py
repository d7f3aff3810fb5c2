"""Measured frequencies against gates evaluated by hand."""

import pytest
import torch

from ringmoe.batch import Batch
from ringmoe.compress.usage import measure


def test_counts_are_what_the_gates_select(model, images):
    batches = [Batch({"opt": images("opt", 3)}), Batch({"sar_l2": images("sar_l2", 1), "opt": images("opt", 2)})]
    seen: list[torch.Tensor] = []
    hook = model.blocks[0].moe.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    usage = measure(model, batches, source="made up")
    hook.remove()
    gate = model.get_parameter("blocks.0.moe.router.collaborative.gate")
    selected = torch.cat([x_TD for x_TD in seen if len(x_TD) != 64]) @ gate
    expected = torch.bincount(selected.argmax(1), minlength=4)
    assert usage.counts[0][0][4:] == tuple(expected.tolist())
    assert usage.tokens == ((5 * 64, 64), (5 * 16, 16), (5 * 16, 16))
    for block in range(3):
        for m, key in enumerate(model.config.modalities):
            assert sum(usage.counts[block][m][:4]) == usage.tokens[block][m]
            assert sum(usage.collaborative(block, key)) == pytest.approx(1)
    assert usage.source == "made up"


def test_the_model_is_left_without_hooks(model, images):
    measure(model, [Batch({"opt": images("opt")})], source="")
    assert not any(module._forward_hooks for module in model.modules())
