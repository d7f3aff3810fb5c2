"""First weights depend on the seed and the global name, and on nothing else."""

import math

import pytest
import torch
from torch import nn

from ringmoe.layers.init import initialise
from ringmoe.layers.window_attention import WindowAttention


class _Stack(nn.Module):
    """Three experts stacked, of which a rank may hold some."""

    init_kinds = {"w_EDF": "weight", "b_ED": "ones"}  # noqa: RUF012

    def __init__(self, ids):
        super().__init__()
        self.ids = ids
        self.w_EDF = nn.Parameter(torch.empty(len(ids), 64, 32))
        self.b_ED = nn.Parameter(torch.empty(len(ids), 4))

    def stacked_names(self):
        return {name: tuple(f"expert.{k}.{name[0]}" for k in self.ids) for name in ("w_EDF", "b_ED")}


def _model(ids=(0, 1, 2), reverse=False):
    parts = {"stack": _Stack(ids), "linear": nn.Linear(64, 32), "norm": nn.LayerNorm(8)}
    return nn.ModuleDict(dict(reversed(parts.items())) if reverse else parts)


def _initialised(model, seed=0):
    initialise(model, seed)
    return model


def test_kinds_of_start():
    model = _initialised(_model())
    for weight in (model["linear"].weight, model["stack"].w_EDF):
        assert abs(weight.std().item() - 0.02) < 0.002
        assert abs(weight.mean().item()) < 0.002
    assert torch.equal(model["linear"].bias, torch.zeros(32))
    assert torch.equal(model["norm"].weight, torch.ones(8))
    assert torch.equal(model["stack"].b_ED, torch.ones(3, 4))
    attention = _initialised(WindowAttention(32, 2, window=4, shifted=False, reference_window=4))
    torch.testing.assert_close(attention.logit_scale.data, torch.full((2,), math.log(10.0)))


def test_order_of_modules_does_not_matter_but_the_seed_does():
    first, second, other = _initialised(_model()), _initialised(_model(reverse=True)), _initialised(_model(), seed=1)
    assert torch.equal(first["linear"].weight, second["linear"].weight)
    assert not torch.equal(first["linear"].weight, other["linear"].weight)


def test_an_expert_starts_alike_on_whatever_rank_it_lives():
    whole, part = _initialised(_model()), _initialised(_model(ids=(2,)))
    assert torch.equal(part["stack"].w_EDF[0], whole["stack"].w_EDF[2])
    assert not torch.equal(whole["stack"].w_EDF[0], whole["stack"].w_EDF[1])


def test_models_built_on_meta_and_in_bfloat16_start_from_the_same_numbers():
    with torch.device("meta"):
        model = _model()
    model = _initialised(model.to_empty(device="cpu"))
    assert torch.equal(model["stack"].w_EDF, _initialised(_model())["stack"].w_EDF)
    half = _initialised(_model().to(torch.bfloat16))
    assert torch.equal(half["linear"].weight, model["linear"].weight.to(torch.bfloat16))


def test_the_global_generator_is_left_alone():
    model = _model()
    before = torch.get_rng_state()
    initialise(model, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_without_a_kind_is_named():
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.empty(2))

    with pytest.raises(TypeError, match=r"part\.scale: Forgetful\.init_kinds must give 'scale'"):
        initialise(nn.ModuleDict({"part": Forgetful()}), 0)
