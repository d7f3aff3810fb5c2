"""The RMoE layer on a GPU: the numbers of the CPU, no waiting for the host, and capture as a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ringmoe.moe import ExpertParallel, RMoEConfig, RMoELayer
from tests.numerics.moe_reference import fill, gradients_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = (300, 0, 212)
CONFIG = RMoEConfig(
    dim=64, hidden=256, modalities=("opt", "ms", "sar"), num_specialised=4, collaborative_ids=(0, 1, 2, 3), top_k=2
)


def layer(dtype: torch.dtype, device: str) -> RMoELayer:
    return fill(RMoELayer(CONFIG, 0, ExpertParallel()), scale=0.1).to(device=device, dtype=dtype)


def tokens(dtype: torch.dtype, device: str) -> Tensor:
    x_TD = torch.randn(sum(SIZES), CONFIG.dim, generator=torch.Generator().manual_seed(1))
    return x_TD.bfloat16().to(device=device, dtype=dtype).requires_grad_()


def outcome(layer: RMoELayer, x_TD: Tensor) -> dict[str, Tensor]:
    y_TD, _ = layer(x_TD, SIZES)
    (y_TD * torch.linspace(-1, 1, CONFIG.dim, device=x_TD.device, dtype=x_TD.dtype)).sum().backward()
    return {"y": y_TD.detach(), "x": x_TD.grad, **gradients_of(layer)}


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_gpu_computes_what_the_cpu_does(dtype: torch.dtype, bound: float, recompute: bool):
    weights = {name: p.detach().cpu().double() for name, p in layer(dtype, "cpu").named_parameters()}
    reference, found = layer(torch.float64, "cpu"), layer(dtype, "cuda")
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(weights[name])
    found.experts.recompute = found.shared.recompute = recompute
    expected = outcome(reference, tokens(torch.float64, "cpu"))
    for name, value in outcome(found, tokens(dtype, "cuda")).items():
        worst = (value.cpu().double() - expected[name]).abs().max()
        assert worst <= bound * max(expected[name].abs().max(), 1e-2), name


def test_a_step_waits_for_nothing_and_replays_as_a_graph():
    found, x_TD = layer(torch.bfloat16, "cuda"), tokens(torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and gives every gradient its memory
            expected = outcome(found, x_TD)["y"].clone()
            x_TD.grad = None
            found.zero_grad(set_to_none=True)
        with no_waiting():
            outcome(found, x_TD)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_TD, _ = found(x_TD, SIZES)
    y_TD.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y_TD, expected)
