"""A RingMoE that is small enough to be built in every test, with nothing of the architecture left out."""

from collections.abc import Callable

import pytest
from torch import nn

from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE


@pytest.fixture(scope="session")
def config() -> RingMoEConfig:
    """Four modalities, two stages of 8 x 8 and 4 x 4 tokens, shifted windows, all three kinds of experts."""
    return RingMoEConfig(
        image_size=32, patch_size=4, depths=(1, 2), dims=(16, 32), head_dim=8, window=3, mask_unit=8, num_specialised=2
    )


@pytest.fixture(scope="session")
def build() -> Callable[..., RingMoE]:
    """Builds the model of a config as if it had been trained: fresh blocks would hand on their input unchanged."""

    def built(config: RingMoEConfig, *, seed: int = 0) -> RingMoE:
        model = RingMoE(config)
        initialise(model, seed)
        for block in model.blocks:
            nn.init.ones_(block.norm1.weight)
            nn.init.ones_(block.norm2.weight)
        return model

    return built
