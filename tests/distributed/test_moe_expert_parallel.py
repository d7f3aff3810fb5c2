"""EP = n on n ranks with different tokens equals EP = 1 on all tokens: outputs and every gradient by global name."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ringmoe.moe import ExpertParallel, RMoEConfig, RMoELayer
from ringmoe.moe.dispatch import AllToAllDispatcher
from ringmoe.testing.ranks import run_ranks
from tests.numerics.moe_reference import fill, gradients_of

pytestmark = pytest.mark.distributed

CONFIG = RMoEConfig(
    dim=8, hidden=20, modalities=("opt", "sar"), num_specialised=4, collaborative_ids=(0, 1, 2, 3), top_k=2
)
# tokens of each modality on each rank: uneven, none of one modality, none at all
SIZES = ((7, 3), (2, 6), (5, 0), (0, 0))


@dataclass(frozen=True)
class Case:
    tied: bool = False  # gates give every expert the same value: all tokens go to experts 0 and 1 of their families
    recompute: bool = False


CASES = {"routed": Case(), "recomputed": Case(recompute=True), "ranks without rows": Case(tied=True)}


def tokens(rank: int) -> tuple[Tensor, Tensor]:
    """A rank's tokens and noise keys, the same wherever they are computed."""
    num = sum(SIZES[rank])
    return torch.randn(num, CONFIG.dim, generator=torch.Generator().manual_seed(rank)), 1000 * rank + torch.arange(num)


def step(
    case: Case, parallel: ExpertParallel, x_TD: Tensor, sizes: tuple[int, ...], keys_T: Tensor
) -> dict[str, np.ndarray]:
    """Output, gradient of the input and gradients by global name, as arrays (which cross processes by value)."""
    layer = fill(RMoELayer(CONFIG, 1, parallel))
    with torch.no_grad():
        for gate in (*layer.router.specialised.values(), layer.router.collaborative) if case.tied else ():
            gate.gate.zero_()
    arguments = (x_TD.requires_grad_(), sizes, None if case.tied else keys_T)
    y_TD, routing = checkpoint(layer, *arguments, use_reentrant=False) if case.recompute else layer(*arguments)
    # the balance loss is left out: it is not a sum over tokens
    (y_TD * torch.arange(1, 1 + CONFIG.dim)).sum().backward()
    arrays = {name: grad.numpy().copy() for name, grad in gradients_of(layer).items()}
    return arrays | {"y": y_TD.detach().numpy(), "x": x_TD.grad.numpy(), "counts": routing.counts_ME.numpy()}


def identity(parallel: ExpertParallel) -> bool:
    """Dispatch then combine, bfloat16, another number of tokens on each rank, all weights 1/2 (exact in any type)."""
    dispatcher = AllToAllDispatcher(num_experts=12, parallel=parallel)
    num = 5 + 3 * parallel.rank
    x_TD = torch.randn(num, 8, dtype=torch.bfloat16, requires_grad=True)
    ids_TK = torch.stack((torch.arange(num) * 7 % 12, torch.arange(num) * 5 % 3), dim=1)
    rows, sent = dispatcher.dispatch(x_TD, ids_TK, torch.full((num, 2), 0.5))
    x_RD, gates_R = sent.receive(rows)
    y_TD = dispatcher.combine(dispatcher.give_back(x_RD * gates_R.unsqueeze(1).bfloat16(), sent), sent)
    cotangent_TD = torch.randn_like(x_TD)
    (grad_TD,) = torch.autograd.grad(y_TD, x_TD, cotangent_TD)
    complete = int(sent.arrived.real_R.sum()) == int(gates_R.count_nonzero())
    return torch.equal(y_TD, x_TD) and torch.equal(grad_TD, cotangent_TD) and complete


def trace(parallel: ExpertParallel) -> list[str]:
    """Names of all operators of a forward and backward in the order in which they began."""
    x_TD, keys_T = tokens(parallel.rank)
    with torch.autograd.profiler.profile() as profiler:
        step(Case(), parallel, x_TD, SIZES[parallel.rank], keys_T)
    return [event.name for event in sorted(profiler.function_events, key=lambda event: event.time_range.start)]


def _answers() -> dict[str, Any]:
    """All that one rank has to tell; starting ranks costs more than what they do."""
    parallel = ExpertParallel(size=dist.get_world_size(), rank=dist.get_rank(), group=dist.group.WORLD)
    x_TD, keys_T = tokens(parallel.rank)
    cases = {name: step(case, parallel, x_TD.clone(), SIZES[parallel.rank], keys_T) for name, case in CASES.items()}
    return cases | {"identity": identity(parallel), "trace": trace(parallel)}


@pytest.fixture(scope="module", params=[2, 4], ids="EP={}".format)
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(_answers, request.param)


def by_modality(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all ranks in the order of a single batch: modality by modality."""
    starts = [np.cumsum((0, *SIZES[rank])) for rank in range(len(parts))]
    return np.concatenate(
        [part[starts[rank][m] : starts[rank][m + 1]] for m in range(2) for rank, part in enumerate(parts)]
    )


def near(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * max(np.abs(theirs).max(), 1.0), err_msg=what)


@pytest.mark.parametrize("name", CASES)
def test_expert_parallel_equals_one_rank(ranks: list[dict[str, Any]], name: str):
    answers = [rank[name] for rank in ranks]
    given = [tokens(rank) for rank in range(len(ranks))]
    x_TD = torch.from_numpy(by_modality([x.numpy() for x, _ in given]))
    keys_T = torch.from_numpy(by_modality([keys.numpy() for _, keys in given]))
    sizes = tuple(sum(SIZES[rank][m] for rank in range(len(ranks))) for m in range(2))
    alone = step(CASES[name], ExpertParallel(), x_TD, sizes, keys_T)

    for rows in ("y", "x"):
        near(by_modality([answer[rows] for answer in answers]), alone.pop(rows), rows)
    assert np.array_equal(sum(answer["counts"] for answer in answers), alone.pop("counts"))
    for parameter, expected in alone.items():
        held = [answer[parameter] for answer in answers if parameter in answer]
        routed = parameter.startswith(("specialised", "collaborative"))
        assert len(held) == (1 if routed else len(ranks)), parameter
        near(sum(held), expected, parameter)


def test_dispatch_then_combine_is_the_identity_across_ranks(ranks: list[dict[str, Any]]):
    assert all(rank["identity"] for rank in ranks)


def test_the_shared_expert_works_while_rows_and_gradients_travel(ranks: list[dict[str, Any]]):
    # rows and gates set out, half of the shared expert, they arrive; the routed experts; outputs set out, the other
    # half, they arrive. The backward pass is the same in reverse, each way ended by what began it
    there = ["_Depart", "_Depart", "_ExpertsFFN", "_Arrive", "_Arrive"]
    back = ["_Depart", "_ExpertsFFN", "_Arrive"]
    forward = [*there, "_ExpertsFFN", *back]
    backward = [f"{name}Backward" for name in reversed(forward)]
    for rank in ranks:
        assert [name for name in rank["trace"] if name in {*forward, *backward}] == forward + backward
