"""Every numbered equation of the RMoE layer against a slow float64 reference: outputs and all gradients."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from ringmoe.moe import ExpertParallel, RMoEConfig, RMoELayer, balance_losses
from tests.numerics.moe_reference import fill, gradients_of, run, weights_of

DIM, HIDDEN, LAYER = 8, 20, 3


@dataclass(frozen=True)
class Case:
    sizes: tuple[int, ...] = (9, 4, 7)
    num_specialised: int = 4
    collaborative_ids: tuple[int, ...] = (0, 1, 2, 3)
    shared: bool = True
    top_k: int = 1
    noise: bool = True
    one_expert: bool = False

    @property
    def config(self) -> RMoEConfig:
        return RMoEConfig(
            dim=DIM,
            hidden=HIDDEN,
            modalities=("opt", "ms", "sar")[: len(self.sizes)],
            num_specialised=self.num_specialised,
            collaborative_ids=self.collaborative_ids,
            shared=self.shared,
            top_k=self.top_k,
        )


CASES = {
    "mixed modalities of unequal sizes": Case(),
    "without noise": Case(noise=False),
    "K=2": Case(top_k=2),
    "K=N": Case(top_k=4),
    "K above N is clamped": Case(top_k=3, num_specialised=2, collaborative_ids=(0,)),
    "a modality without tokens": Case(sizes=(6, 0, 5), top_k=2),
    "one modality": Case(sizes=(11,)),
    "one token": Case(sizes=(0, 1, 0)),
    "all tokens on one expert": Case(one_expert=True),
    "pruned collaborative experts": Case(collaborative_ids=(1, 3), top_k=2),
    "one collaborative expert left": Case(collaborative_ids=(2,)),
    "no shared expert": Case(shared=False),
    "no specialised experts": Case(num_specialised=0),
    "no collaborative experts": Case(collaborative_ids=()),
    "shared expert only": Case(num_specialised=0, collaborative_ids=()),
}


def build(case: Case, dtype: torch.dtype) -> tuple[RMoELayer, Tensor, Tensor | None]:
    """The layer with its weights, tokens and noise keys."""
    layer = fill(RMoELayer(case.config, LAYER, ExpertParallel())).to(dtype)
    x_TD = torch.randn(sum(case.sizes), DIM, generator=torch.Generator().manual_seed(5))
    if case.one_expert:
        x_TD[:, 0] = 1.0
        with torch.no_grad():
            for gate in (*layer.router.specialised.values(), layer.router.collaborative):
                gate.gate[0, 2] = 30.0
    return layer, x_TD.to(dtype).requires_grad_(), torch.arange(len(x_TD)) * 77 if case.noise else None


def assert_near(ours: Tensor, theirs: Tensor, bound: float, what: str, scale: float = 0.0) -> None:
    """The largest difference is at most ``bound`` times the largest value (or ``scale`` where all cancel)."""
    worst = (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
    assert worst <= bound * max(theirs.abs().max().item() if theirs.numel() else 0.0, scale), f"{what}: {worst}"


def compare(case: Case, dtype: torch.dtype, bound: float) -> None:
    layer, x_TD, keys_T = build(case, dtype)
    cotangent_TD = torch.randn(x_TD.shape, generator=torch.Generator().manual_seed(6)).to(dtype)
    weights = weights_of(layer)
    x64_TD = x_TD.detach().double().requires_grad_()

    y_TD, routing = layer(x_TD, case.sizes, keys_T)
    collaborative, specialised_M = balance_losses(routing, case.num_specialised)
    ((y_TD * cotangent_TD).sum() + 3 * collaborative + 2 * specialised_M.sum()).backward()

    expected = run(weights, case.config, x64_TD, case.sizes, keys_T, LAYER)
    loss = (expected.y_TD * cotangent_TD).sum() + 3 * expected.collaborative + 2 * expected.specialised_M.sum()
    names, tensors = list(weights), list(weights.values())
    grads = torch.autograd.grad(loss, [x64_TD, *tensors], allow_unused=True)  # experts without tokens
    expected_grads = [torch.zeros_like(t) if g is None else g for t, g in zip([x64_TD, *tensors], grads, strict=True)]

    assert torch.equal(routing.counts_ME, expected.counts_ME)
    assert routing.tokens_M.tolist() == list(case.sizes)
    assert y_TD.dtype == dtype
    assert_near(y_TD, expected.y_TD, bound, "y")
    # gates are float32 in every type of the layer, and so are the losses
    assert_near(collaborative, expected.collaborative, 1e-5, "balance of the collaborative experts")
    assert_near(specialised_M, expected.specialised_M, 1e-5, "balance of the specialised experts")
    assert_near(x_TD.grad, expected_grads[0], bound, "gradient of x")
    ours = gradients_of(layer)
    assert sorted(ours) == sorted(names)
    for name, theirs in zip(names, expected_grads[1:], strict=True):
        # a gate with a single expert is constant: its gradient is exactly 0 and only rounding is left of it
        assert_near(ours[name], theirs, bound, f"gradient of {name}", scale=1e-2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_float32_follows_the_reference(case: Case):
    compare(case, torch.float32, bound=1e-5)


@pytest.mark.parametrize("name", ["mixed modalities of unequal sizes", "K=2", "pruned collaborative experts"])
def test_bfloat16_stays_within_a_few_roundings(name: str):
    # values pass about five roundings to 8 bits (hidden, GELU, output, sum over experts, gradient): 5 * 2^-8
    compare(CASES[name], torch.bfloat16, bound=2e-2)


def test_autocast_computes_experts_in_bfloat16_and_gates_in_float32():
    layer, x_TD, keys_T = build(CASES["K=2"], torch.float32)
    plain_TD, plain = layer(x_TD, CASES["K=2"].sizes, keys_T)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD, routing = layer(x_TD, CASES["K=2"].sizes, keys_T)
    assert y_TD.dtype == torch.bfloat16
    assert torch.equal(routing.probs_ME, plain.probs_ME)
    assert_near(y_TD, plain_TD, 2e-2, "y")
    grads, expected = (
        torch.autograd.grad(y.float().square().sum(), [x_TD, *layer.parameters()]) for y in (y_TD, plain_TD)
    )
    for ours, theirs in zip(grads, expected, strict=True):
        assert_near(ours, theirs, 3e-2, "gradient", scale=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed modalities of unequal sizes", "without noise"])
def test_a_compiled_layer_follows_the_reference(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RMoELayer, "forward", torch.compile(RMoELayer.forward))
    compare(CASES[name], torch.float32, bound=1e-5)


def test_gradients_are_those_of_finite_differences():
    case = Case(sizes=(3, 2), top_k=2)
    layer, x_TD, keys_T = build(case, torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(names, parameters, strict=True))
        y_TD, routing = functional_call(layer, named, (x, case.sizes, keys_T))
        return y_TD, *balance_losses(routing, case.num_specialised)

    assert torch.autograd.gradcheck(outputs, (x_TD, *layer.parameters()), fast_mode=True)


def test_one_expert_with_gate_weight_one_is_the_dense_ffn():
    layer, x_TD, _ = build(Case(num_specialised=1, collaborative_ids=(), shared=False, sizes=(6,)), torch.float32)
    dense, _, _ = build(Case(num_specialised=0, collaborative_ids=(), sizes=(6,)), torch.float32)
    with torch.no_grad():
        for ours, stack in zip(dense.shared.parameters(), layer.experts.parameters(), strict=True):
            ours.copy_(stack[0])
    y_TD, _ = layer(x_TD, (6,))
    (grad_TD,) = torch.autograd.grad(y_TD.square().sum(), x_TD)
    dense_TD, routing = dense(x_TD, (6,))
    (dense_grad_TD,) = torch.autograd.grad(dense_TD.square().sum(), x_TD)
    assert torch.equal(y_TD, dense_TD)
    torch.testing.assert_close(grad_TD, dense_grad_TD, rtol=1e-6, atol=1e-6)
    assert routing.counts_ME.shape == routing.probs_ME.shape == (1, 0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_the_layer_changes_nothing(reentrant: bool):
    def gradients(recompute: bool) -> list[Tensor]:
        layer, x_TD, keys_T = build(Case(top_k=2), torch.float32)
        arguments = (x_TD, (9, 4, 7), keys_T)
        if recompute:
            y_TD, _ = torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=reentrant)
        else:
            y_TD, _ = layer(*arguments)
        y_TD.square().sum().backward()
        return [x_TD.grad, *(p.grad for p in layer.parameters())]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, recomputed)
