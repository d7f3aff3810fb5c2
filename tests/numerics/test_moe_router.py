"""Gates (Eqs. 13-14) and balance losses (Eqs. 4, 8-10) one by one, where a layer would hide a mistake."""

import pytest
import torch
from torch import Tensor

from ringmoe.batch import Routing
from ringmoe.moe import RMoEConfig, balance_losses
from ringmoe.moe.router import Gate, Router, select
from tests.numerics import moe_reference

SIZES = (6, 3)
CONFIG = RMoEConfig(dim=5, hidden=8, modalities=("opt", "sar"), num_specialised=3, collaborative_ids=(0, 1, 4), top_k=2)
KEYS_T = torch.arange(9) + 40


def router(layer_index: int = 0, **changes: object) -> Router:
    built = Router(RMoEConfig(**(CONFIG.__dict__ | changes)), layer_index)
    with torch.no_grad():
        for number, parameter in enumerate(built.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    return built


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).to(dtype)


def probs(built: Router, keys_T: Tensor | None) -> Tensor:
    return built(tokens(), SIZES, keys_T).routing.probs_ME.detach()


def test_eq_14_noisy_softmax():
    gate = Gate(5, 3)
    weights = {"g.gate": torch.randn(5, 3, dtype=torch.float64), "g.noise": torch.randn(5, 3, dtype=torch.float64)}
    gate.load_state_dict({name.partition(".")[2]: value for name, value in weights.items()})
    x_TD, noise_TN = tokens(), torch.randn(9, 3)
    expected = [moe_reference.gate(weights, "g", x.double(), n.double()) for x, n in zip(x_TD, noise_TN, strict=True)]
    torch.testing.assert_close(gate(x_TD, noise_TN).double(), torch.stack(expected), rtol=1e-5, atol=1e-7)


def test_eq_13_keeps_the_values_of_the_k_largest_and_breaks_ties_by_the_lowest_id():
    probs_TN = torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    gates_TK, ids_TK = select(probs_TN, 2)
    assert ids_TK.tolist() == [[1, 2], [1, 0], [0, 1]]
    assert torch.equal(gates_TK, probs_TN.gather(1, ids_TK))
    assert select(probs_TN, 5)[1].shape == (3, 3)


def test_ids_are_places_in_the_expert_list_of_the_tokens_own_modality():
    plan = router()(tokens(), SIZES)
    families = [CONFIG.expert_names[i].rpartition(".")[0] for i in plan.ids_TK.flatten().tolist()]
    assert families == 6 * (["specialised.opt"] * 2 + ["collaborative"] * 2) + 3 * (
        ["specialised.sar"] * 2 + ["collaborative"] * 2
    )


def test_noise_is_a_function_of_key_layer_and_family():
    assert torch.equal(probs(router(), KEYS_T), probs(router(), KEYS_T))
    assert not torch.equal(probs(router(), KEYS_T), probs(router(), KEYS_T + 1))
    assert not torch.equal(probs(router(0), KEYS_T), probs(router(1), KEYS_T))
    twins = router()
    with torch.no_grad():  # the same weights in both families: only the noise tells them apart
        for modality in twins.specialised.values():
            modality.load_state_dict(twins.collaborative.state_dict())
    noisy, quiet = probs(twins, KEYS_T).split(3, dim=1), probs(twins, None).split(3, dim=1)
    assert torch.equal(*quiet)
    assert not torch.equal(*noisy)


def test_there_is_no_noise_in_evaluation_nor_when_it_is_turned_off():
    quiet = probs(router(), None)
    assert torch.equal(probs(router().eval(), KEYS_T), quiet)
    assert torch.equal(probs(router(gate_noise=False), KEYS_T), quiet)
    assert not torch.equal(probs(router(), KEYS_T), quiet)


def test_every_parameter_has_a_gradient_even_without_noise():
    built = router()
    plan = built(tokens(), (9, 0))
    plan.gates_TK.sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert all(parameter.grad.count_nonzero() == 0 for parameter in built.specialised["sar"].parameters())


def test_gates_are_float32_for_bfloat16_tokens():
    low = router()(tokens(torch.bfloat16), SIZES, KEYS_T)
    high = router()(tokens(torch.bfloat16).float(), SIZES, KEYS_T)
    assert low.gates_TK.dtype == torch.float32
    assert torch.equal(low.gates_TK, high.gates_TK)


def routing(counts_ME: list[list[int]], probs_ME: list[list[float]], tokens_M: list[int]) -> Routing:
    return Routing(torch.tensor(counts_ME).float(), torch.tensor(probs_ME), torch.tensor(tokens_M).float())


def test_eq_8_by_hand():
    # modality 0: 4 tokens, specialised f = (3/4, 1/4), P = (1/2, 1/2): 2 * (3/8 + 1/8) = 1
    # modality 1: 2 tokens, specialised f = (1, 0), P = (3/4, 1/4): 2 * 3/4 = 1.5
    # collaborative: 6 tokens, f = (5/6, 1/6), P = (4/6, 2/6): 2 * (20/36 + 2/36) = 44/36
    decided = routing(
        counts_ME=[[3, 1, 4, 0], [2, 0, 1, 1]],
        probs_ME=[[2.0, 2.0, 3.0, 1.0], [1.5, 0.5, 1.0, 1.0]],
        tokens_M=[4, 2],
    )
    collaborative, specialised_M = balance_losses(decided, num_specialised=2)
    assert collaborative.item() == pytest.approx(44 / 36)
    assert specialised_M.tolist() == pytest.approx([1.0, 1.5])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_perfect_balance_costs_k_and_the_gradient_flows_through_p_alone(top_k: int):
    counts_ME = torch.full((1, 4), 2.0 * top_k)
    probs_ME = torch.full((1, 4), 2.0, requires_grad=True)
    _, specialised_M = balance_losses(Routing(counts_ME, probs_ME, torch.tensor([8.0])), num_specialised=4)
    specialised_M.sum().backward()
    assert specialised_M.item() == pytest.approx(top_k)
    # d/dp_k of N * sum f_k p_k / T
    assert probs_ME.grad.tolist() == [[pytest.approx(4 * (top_k / 4) / 8)] * 4]


def test_families_and_modalities_that_are_not_there_cost_nothing():
    decided = routing(counts_ME=[[0, 0], [3, 1]], probs_ME=[[0.0, 0.0], [2.0, 2.0]], tokens_M=[0, 4])
    collaborative, specialised_M = balance_losses(decided, num_specialised=2)
    assert collaborative.item() == 0
    assert specialised_M.tolist() == [0.0, pytest.approx(1.0)]
    collaborative, specialised_M = balance_losses(decided, num_specialised=0)
    assert collaborative.item() == pytest.approx(1.0)
    assert specialised_M.tolist() == [0.0, 0.0]
