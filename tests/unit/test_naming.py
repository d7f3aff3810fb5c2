"""Global names: stacked experts are known one by one."""

import pytest
import torch
from torch import nn

from ringmoe.naming import canonical_entries


class _Stack(nn.Module):
    def __init__(self, names: tuple[str, ...], num: int):
        super().__init__()
        self.w1_EDF = nn.Parameter(torch.arange(float(num)).reshape(num, 1, 1).expand(num, 2, 3).clone())
        self._names = names

    def stacked_names(self):
        return {"w1_EDF": tuple(f"{name}.w1" for name in self._names)}


def _model(names: tuple[str, ...] = ("specialised.opt.0", "collaborative.2"), num: int = 2) -> nn.Module:
    moe = nn.Module()
    moe.experts = _Stack(names, num)
    moe.norm = nn.LayerNorm(2)
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module()])
    model.blocks[0].moe = moe
    return model


def test_experts_are_named_one_by_one_and_their_tensors_are_views():
    model = _model()
    entries = {entry.name: entry for entry in canonical_entries(model)}
    assert set(entries) == {
        "blocks.0.moe.specialised.opt.0.w1",
        "blocks.0.moe.collaborative.2.w1",
        "blocks.0.moe.norm.weight",
        "blocks.0.moe.norm.bias",
    }
    second = entries["blocks.0.moe.collaborative.2.w1"]
    assert second.index == 1
    assert second.tensor.eq(1).all()
    second.tensor.fill_(9)
    assert model.blocks[0].moe.experts.w1_EDF[1].eq(9).all()


def test_a_stack_of_another_length_than_its_names_is_a_fault():
    with pytest.raises(ValueError, match="stacks 3 experts but names 2"):
        list(canonical_entries(_model(num=3)))
