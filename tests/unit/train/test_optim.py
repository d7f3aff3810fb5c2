"""Who decays, and the learning rate of each step."""

import math
from itertools import pairwise

import pytest

from ringmoe.errors import ConfigError
from ringmoe.train.optim import OptimiserConfig, ScheduleConfig, decays


@pytest.mark.parametrize(
    "name",
    [
        "embed.opt.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.3.attention.proj.weight",
        "blocks.0.moe.router.specialised.sar_l1.gate",
        "blocks.0.moe.router.collaborative.gate",
        "blocks.7.moe.specialised.opt.2.w1",
        "blocks.7.moe.collaborative.0.w2",
        "blocks.7.moe.shared.w1",
        "merges.1.reduction.weight",
        "decoders.ms.weight",
    ],
)
def test_matrices_decay(name):
    assert decays(name)


@pytest.mark.parametrize(
    "name",
    [
        "embed.opt.bias",
        "embed_norm.opt.weight",
        "positions",
        "mask_token",
        "blocks.0.attention.q_bias",
        "blocks.0.attention.v_bias",
        "blocks.0.attention.logit_scale",
        "blocks.0.attention.position_bias.0.weight",
        "blocks.0.attention.position_bias.2.weight",
        "blocks.0.attention.proj.bias",
        "blocks.0.norm1.weight",
        "blocks.0.moe.router.specialised.opt.noise",
        "blocks.7.moe.specialised.opt.2.b1",
        "blocks.7.moe.shared.b2",
        "merges.0.norm.weight",
        "norm.weight",
        "decoders.sar_l1.bias",
    ],
)
def test_norms_biases_scales_and_noise_do_not_decay(name):
    assert not decays(name)


def test_the_schedule_rises_linearly_then_falls_as_a_cosine_to_its_floor():
    schedule = ScheduleConfig(steps=111, warmup=10, floor=0.1)
    factors = [schedule.factor(step) for step in range(111)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)  # half-way between 1 and the floor
    assert factors[35] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factors[-1] == pytest.approx(0.1)
    assert all(before > after for before, after in pairwise(factors[10:]))


def test_a_run_of_one_step_has_a_rate():
    assert ScheduleConfig(steps=1, warmup=0).factor(0) == 1.0


@pytest.mark.parametrize("wrong", [{"steps": 0, "warmup": 0}, {"steps": 10, "warmup": 10}, {"floor": 1.5}])
def test_an_impossible_schedule_is_refused(wrong):
    with pytest.raises(ConfigError, match="schedule"):
        ScheduleConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"clip": -1.0}])
def test_an_impossible_optimiser_is_refused(wrong):
    with pytest.raises(ConfigError, match="optimiser"):
        OptimiserConfig(**wrong)
