"""Stacked experts against the single expert they are made of."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ringmoe.moe import ffn as ffn_module
from ringmoe.moe.experts import Expert, Experts

COUNTS = [3, 0, 5, 1]


def ffn(x_TD: Tensor, w1_DF: Tensor, b1_F: Tensor, w2_FD: Tensor, b2_D: Tensor) -> Tensor:
    """E_k of Eq. 12 as it is written, with the exact (erf) GELU."""
    return F.gelu(x_TD @ w1_DF + b1_F) @ w2_FD + b2_D


def stacked(dtype: torch.dtype = torch.float64) -> Experts:
    experts = Experts(6, 10, ("specialised.opt.0", "specialised.opt.2", "collaborative.0", "collaborative.2"))
    with torch.no_grad():
        for number, parameter in enumerate(experts.parameters()):
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(number))
    return experts.to(dtype)


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(sum(COUNTS), 6, dtype=dtype, generator=torch.Generator().manual_seed(9)).requires_grad_()


def gates(dtype: torch.dtype = torch.float64) -> Tensor:
    """One of them 0, one tiny: nothing may be divided by a gate."""
    gates_R = torch.rand(sum(COUNTS), dtype=dtype, generator=torch.Generator().manual_seed(10))
    gates_R[3], gates_R[4] = 0.0, 1e-30
    return gates_R.requires_grad_()


def outcome(experts: Experts, rows_RD: Tensor, gates_R: Tensor) -> tuple[Tensor, ...]:
    """Outputs and the gradients of rows, gates and weights."""
    y_RD = experts(rows_RD, gates_R, torch.tensor(COUNTS))
    return y_RD, *torch.autograd.grad(y_RD.square().sum(), [rows_RD, gates_R, *experts.parameters()])


BOUNDS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("chunk", [2, 1024])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_every_expert_computes_its_own_rows(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bound: float, chunk: int, recompute: bool
):
    monkeypatch.setattr(ffn_module, "_CHUNK", chunk)
    experts, wide = stacked(dtype), torch.promote_types(dtype, torch.float32)
    experts.recompute = recompute
    ours = outcome(experts, rows(dtype), gates(wide))

    alone = [p.detach().double().requires_grad_() for p in (rows(dtype), gates(wide), *experts.parameters())]
    parts = zip(torch.split(alone[0], COUNTS), torch.split(alone[1], COUNTS), strict=True)
    expected_RD = torch.cat(
        [ffn(x_TD, *(stack[e] for stack in alone[2:])) * g_T.unsqueeze(1) for e, (x_TD, g_T) in enumerate(parts)]
    )
    expected = expected_RD, *torch.autograd.grad(expected_RD.square().sum(), alone)
    for found, reference in zip(ours, expected, strict=True):
        assert (found.double() - reference).abs().max() <= bound * reference.abs().max()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_gradients_are_those_of_finite_differences(recompute: bool):
    experts = stacked()
    experts.recompute = recompute

    def outputs(x_RD: Tensor, gates_R: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(experts.named_parameters()), parameters, strict=True))
        y_RD: Tensor = torch.func.functional_call(experts, named, (x_RD, gates_R, torch.tensor(COUNTS)))
        return y_RD * 1.0  # the gradient of the outputs is written over, and this check uses its own twice

    assert torch.autograd.gradcheck(outputs, (rows(), gates(), *experts.parameters()), fast_mode=True)


def test_recomputing_keeps_no_hidden_values_and_changes_no_bit():
    def saved(recompute: bool) -> tuple[int, tuple[Tensor, ...]]:
        experts, numbers = stacked(torch.float32), []
        experts.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (numbers.append(x.numel()), x)[1], lambda x: x):
            found = outcome(experts, rows(torch.float32), gates(torch.float32))
        return sum(numbers), found

    (most, kept), (fewer, again) = saved(False), saved(True)
    assert most - fewer == sum(COUNTS) * 10
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, again, strict=True))


def test_one_expert_for_all_tokens_is_the_plain_ffn():
    expert = Expert(6, 10).double()
    for number, parameter in enumerate(expert.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    ours, theirs = expert(rows()), ffn(rows(), *expert.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_an_expert_without_rows_has_a_gradient_of_zeros():
    experts = stacked()
    experts(rows(), gates(), torch.tensor(COUNTS)).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad[1].count_nonzero() == 0
        assert parameter.grad[2].count_nonzero() > 0


def test_no_rows_at_all_still_give_every_expert_a_gradient():
    experts = stacked()
    experts(torch.empty(0, 6).double(), torch.empty(0).double(), torch.zeros(4, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in experts.parameters())


def test_frozen_experts_hand_the_gradient_on_and_keep_none():
    experts, rows_RD = stacked().requires_grad_(False), rows()
    experts(rows_RD, gates(), torch.tensor(COUNTS)).sum().backward()
    assert rows_RD.grad.count_nonzero() > 0
    assert all(p.grad is None for p in experts.parameters())


def test_slices_are_known_by_their_global_names():
    names = stacked().stacked_names()
    assert set(names) == {name for name, _ in stacked().named_parameters()} == set(Experts.init_kinds)
    assert names["b2_ED"] == (
        "specialised.opt.0.b2",
        "specialised.opt.2.b2",
        "collaborative.0.b2",
        "collaborative.2.b2",
    )


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_without_gradients_hidden_values_are_those_of_a_chunk(monkeypatch: pytest.MonkeyPatch, recompute: bool):
    experts, sizes, empty = stacked(), [], Tensor.new_empty
    experts.recompute = recompute
    monkeypatch.setattr(ffn_module, "_CHUNK", 2)
    monkeypatch.setattr(Tensor, "new_empty", lambda x, *shape: (sizes.append(shape), empty(x, *shape))[1])
    with torch.no_grad():
        experts(rows(), gates(), torch.tensor(COUNTS))
    assert max(size[0] for size in sizes) == 2
