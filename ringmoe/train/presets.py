"""Runs to start from: a model of ``ringmoe.models`` with the settings that train it. A preset is a function."""

from collections.abc import Callable
from pathlib import Path

from ringmoe.data.augment import CropConfig
from ringmoe.data.loader import DataConfig
from ringmoe.errors import ConfigError
from ringmoe.models import PRESETS as MODEL_PRESETS
from ringmoe.models import preset as model_preset
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.train.optim import OptimiserConfig, ScheduleConfig
from ringmoe.train.run import Intervals, ParallelConfig, RunConfig


def tiny() -> RunConfig:
    """Minutes on two cores: a small batch, a high learning rate, large crops of small tiles, fp32."""
    return RunConfig(
        model=_model("tiny"),
        data=DataConfig(micro_batch=32, crop=CropConfig(area=(0.6, 1.0))),
        optimiser=OptimiserConfig(lr=7e-4),
        schedule=ScheduleConfig(steps=1_000, warmup=50),
        parallel=ParallelConfig(dtype="fp32"),
        every=Intervals(log=10, checkpoint=250, evaluation=200, pictures=500),
        output=Path("runs/tiny"),
    )


def _paper(name: str) -> RunConfig:
    """The paper's optimiser (App. B.3) on a model that has no settings of its own."""
    return RunConfig(model=_model(name), output=Path("runs") / name)


def _model(name: str) -> RingMoEConfig:
    config = model_preset(name)
    if not isinstance(config, RingMoEConfig):
        raise ConfigError(f"preset {name!r} is a {type(config).__name__}, which this program does not pre-train")
    return config


RUNS: dict[str, Callable[[], RunConfig]] = {"tiny": tiny}


def preset(name: str) -> RunConfig:
    """The run of a preset; every model preset is one.

    Raises:
        ConfigError: No such preset; the message lists those that exist.
    """
    if name not in MODEL_PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(MODEL_PRESETS)}")
    return RUNS[name]() if name in RUNS else _paper(name)
