"""The lean engine on a GPU: compiled, waiting for nothing, and continued bit for bit."""

import pytest
import torch

from ringmoe import counter
from ringmoe.distributed.eight_bits import FIRST_MOMENT, SECOND_MOMENT, decode, encode
from ringmoe.distributed.engine_file import EngineConfig
from ringmoe.distributed.lean import LeanEngine
from ringmoe.naming import canonical_entries
from tests.fixtures.tiny_moe import TinyMoe, micro_batch, param_groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _build(clip: float, accumulation: int, device: str) -> LeanEngine:
    model = TinyMoe().to(device=device, dtype=torch.bfloat16)
    return LeanEngine(
        model, param_groups(model), EngineConfig(clip=clip, accumulation=accumulation, lr=1e-2, eps=1e-6), seed=0
    )


def _train(engine: LeanEngine, steps: range, accumulation: int = 1) -> list[torch.Tensor]:
    device = next(engine.model.parameters()).device
    losses = []
    for step in steps:
        engine.set_lr(1e-2)
        for part in range(accumulation):
            loss = engine.forward(*(x.to(device) for x in micro_batch(step * accumulation + part)))
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach().cpu())
    return losses


@pytest.mark.parametrize("code", [FIRST_MOMENT, SECOND_MOMENT], ids=["first", "second"])
def test_codes_decode_and_encode_to_themselves(code):
    generator = torch.Generator().manual_seed(0)
    x_N = torch.randn(5000, generator=generator) * torch.exp(torch.randn(5000, generator=generator))
    encoded = encode((x_N if code.signed else x_N.square()).cuda(), code)
    decoded_N = decode(encoded, code)
    torch.testing.assert_close(decoded_N.cpu(), decode(type(encoded)(*(x.cpu() for x in encoded)), code))
    for random_N in (None, counter.mix(torch.arange(5000, device="cuda"), 1)):
        again = encode(decoded_N, code, random_N)
        assert torch.equal(again.codes_N, encoded.codes_N)
        assert torch.equal(again.scales_B, encoded.scales_B)


@pytest.mark.parametrize(("clip", "accumulation"), [(0.0, 1), (0.5, 1), (0.5, 2)])
def test_it_follows_the_cpu_and_goes_on_bit_for_bit(clip, accumulation):
    whole, reference = _build(clip, accumulation, "cuda"), _build(clip, accumulation, "cpu")
    losses = _train(whole, range(6), accumulation)
    torch.testing.assert_close(losses, _train(reference, range(6), accumulation), rtol=0.1, atol=0.1)
    first, second = _build(clip, accumulation, "cuda"), _build(clip, accumulation, "cuda")
    _train(first, range(3), accumulation)
    second.load_state(dict(first.state_of(canonical_entries(first.model))).__getitem__, 3)
    assert _train(second, range(3, 6), accumulation) == losses[3 * accumulation :]


def test_a_step_waits_for_nothing():
    engine = _build(0.5, 1, "cuda")
    _train(engine, range(3))  # compiles
    x, y = (value.cuda() for value in micro_batch(3))
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.set_lr(1e-3)
        engine.backward(engine.forward(x, y))
        engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
