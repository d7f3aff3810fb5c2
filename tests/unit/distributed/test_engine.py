"""What the engine takes from DeepSpeed's inside is there in the version that is pinned."""

import tomllib
from pathlib import Path

import deepspeed
from deepspeed.runtime import compiler
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups

from ringmoe.distributed.engine import DEEPSPEED_VERSION

ROOT = Path(__file__).resolve().parents[3]


def test_version_is_the_one_that_is_known_inside_out():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert f"deepspeed=={DEEPSPEED_VERSION}" in extras
    assert deepspeed.__version__ == DEEPSPEED_VERSION


def test_private_parts_are_where_they_were():
    for optimizer in (DeepSpeedZeroOptimizer, BF16_Optimizer):
        assert callable(optimizer._lazy_init_hp_params_optimizer_state)
    assert callable(groups._create_expert_and_data_parallel)
    assert callable(groups._get_expert_parallel_group)
    assert isinstance(groups._get_expert_parallel_group_dict(), dict)
    assert callable(compiler.dummy_decorator)
