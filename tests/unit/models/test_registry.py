"""Every family's smallest preset is built, trained one step and described, whatever the family."""

from dataclasses import replace

import pytest
import torch

from ringmoe import modality
from ringmoe.config import from_dict, to_dict
from ringmoe.errors import ConfigError
from ringmoe.layers.init import initialise
from ringmoe.models import FAMILIES, PRESETS, build_model, config_from, family_of, preset
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.testing.batches import random_batch


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_belongs_to_a_family_and_survives_its_file(name):
    config = preset(name)
    family = family_of(config)
    assert from_dict(family.config, to_dict(config)) == config
    assert config_from({"family": family.name, "model": to_dict(config)}) == config
    assert next(iter(config.variants().values())) == config
    assert PRESETS[name].__doc__


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_smallest_preset_of_a_family_learns(family):
    config = min((make() for make in family.presets.values()), key=lambda config: config.num_params())
    model = build_model(config)
    initialise(model, 0)
    batch = random_batch(config.modalities, 2, config.image_size)
    before = model(batch).loss
    before.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            parameter -= 1e-2 * parameter.grad
    assert model(batch).loss < before


def test_unknown_names_are_answered_with_known_ones():
    with pytest.raises(ConfigError, match="no preset 'ringmoe-7b'; there are tiny, "):
        preset("ringmoe-7b")
    with pytest.raises(ConfigError, match="unknown model family 'vit'; known are ringmoe"):
        config_from({"family": "vit", "model": {}})
    with pytest.raises(ConfigError, match="the config of no known model"):
        build_model(object())


def test_a_checkpoint_brings_its_own_modalities():
    spec = replace(modality.get("sar_l2"), key="heat_test", title="thermal", bands=("T",))
    model = to_dict(RingMoEConfig(modalities=("opt",))) | {"modalities": ["heat_test"]}
    values = {"family": "ringmoe", "model": model, "inputs": {"heat_test": {"spec": to_dict(spec)}}}
    try:
        assert config_from(values).modalities == ("heat_test",)
        assert modality.get("heat_test") == spec
    finally:
        modality._REGISTRY.pop("heat_test", None)
