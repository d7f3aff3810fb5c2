"""What is planned of the lean engine is what it holds, and it is proposed for one device only."""

import json
from dataclasses import replace

import pytest
import torch

from ringmoe.cli.plan import PlanConfig, run
from ringmoe.distributed.eight_bits import Encoded
from ringmoe.distributed.engine_file import EngineConfig
from ringmoe.distributed.lean import LeanEngine
from ringmoe.errors import ConfigError
from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.plan.lean import lean_memory
from ringmoe.plan.parameters import local_parameters
from ringmoe.plan.setting import EngineFile, Setting
from ringmoe.testing.batches import random_batch
from ringmoe.train.build import parameter_groups
from ringmoe.train.optim import decays

MODEL = RingMoEConfig(image_size=32, depths=(1, 1), dims=(16, 32), head_dim=8, window=4, mask_unit=8)
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTING = Setting(
    devices=1,
    expert_parallel=1,
    engine=EngineFile.read("lean"),
    dtype="bf16",
    recompute="nothing",
    images=dict.fromkeys(MODEL.modalities, 1),
    accumulation=1,
)


def _plans(capsys, **options) -> list[dict]:
    run(PlanConfig(json=True, **options))
    return json.loads(capsys.readouterr().out)["plans"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("accumulation", "clips"), [(1, False), (1, True), (2, False)])
def test_weights_moments_and_held_gradients_to_the_byte(dtype, accumulation, clips):
    setting = replace(SETTING, dtype=dtype, accumulation=accumulation, clips=clips)
    memory = lean_memory(MODEL, setting, local_parameters(MODEL, 1, decays))
    model = RingMoE(MODEL).to(TYPES[dtype])
    initialise(model, 0)
    config = EngineConfig(dtype=dtype, accumulation=accumulation, clip=float(clips))
    engine = LeanEngine(model, parameter_groups(model, 0.05), config, seed=0)
    encoded = [each for named in engine._named.values() for one in named for each in (one.first, one.second)]
    assert all(isinstance(each, Encoded) for each in encoded)
    assert memory.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert memory.optimiser == sum(each.codes_N.nbytes for each in encoded)
    assert memory.scales == sum(each.scales_B.nbytes for each in encoded)
    for _ in range(accumulation):
        engine.backward(engine.forward(random_batch(MODEL.modalities, 1, 32)).loss)
    assert memory.step_gradients == sum(gradient.nbytes for gradient in engine._held.values())
    assert (memory.step_gradients == 0) == (not clips and accumulation == 1)


def test_one_device_takes_the_largest_model(capsys):
    options = {"preset": "ringmoe-14b", "engine": "lean", "devices": (1,), "micro_batch": 16, "recompute": "blocks"}
    (clipped,), (released,) = _plans(capsys, **options), _plans(capsys, clip=0.0, **options)
    assert clipped["fits"]
    assert released["fits"]
    weights = released["memory"]["weights"]
    assert clipped["memory"]["gradients"] == weights
    assert 0 < released["memory"]["gradients"] < weights / 7  # the experts of the widest layer


def test_the_search_takes_it_on_one_device_only(capsys):
    options = {"preset": "ringmoe-14b", "total": 64, "search": True, "show": 1000}
    assert _plans(capsys, devices=(1,), **options)[0]["setting"]["engine"]["name"] == "lean"
    assert "lean" not in {plan["setting"]["engine"]["name"] for plan in _plans(capsys, devices=(8,), **options)}
    with pytest.raises(ConfigError, match="lean engine is for one device, here are 8 ranks"):
        run(PlanConfig(devices=(8,), engines=("lean",), **options))
    with pytest.raises(ConfigError, match="lean engine is for one device, here are 8 ranks"):
        run(PlanConfig(preset="tiny", devices=(8,), engine="lean"))
