"""The config refuses what cannot be built, makes sub-models, and counts without building."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ringmoe.config import from_dict, to_dict
from ringmoe.errors import ConfigError
from ringmoe.models import FAMILIES, PRESETS, build_model, preset
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.presets import ringmoe_14b
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.testing.batches import random_images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ()}, "one or more different keys"),
        ({"modalities": ("opt", "opt")}, "one or more different keys"),
        ({"modalities": ("thermal",)}, "unknown modality 'thermal'"),
        ({"window": 0}, "window is 0; expected at least 1"),
        ({"depths": (2, 2)}, "for each stage a depth"),
        ({"dims": (448, 896, 1792, 3600)}, "3600 wide, which heads of 32 do not divide"),
        ({"image_size": 200}, "image_size 200 is no multiple of 32"),
        ({"mask_unit": 40}, "mask_unit is 40 pixels; .* divides image_size"),
        ({"mask_unit": 6}, "multiple of patch_size"),
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"num_specialised": -1}, "expected 0 or more"),
        ({"num_specialised": 0, "num_collaborative": 0, "shared": False}, "no experts at all"),
        ({"top_k": 5}, "from 1 to 4 experts of each family"),
        ({"top_k": 0}, "top_k is 0"),
        ({"collaborative_kept": ((0,),)}, "speaks of 1 blocks; the model has 24"),
        ({"collaborative_kept": ((0, 4),) * 24}, "block 0 is .* ids from 0 to 3"),
        ({"collaborative_kept": ((1, 0),) * 24}, "ascending"),
        ({"target_norm_window": 8}, "odd number"),
        ({"balance_weight": -0.1}, "balance_weight is -0.1"),
    ],
)
def test_settings_that_cannot_be_built_are_refused_in_words(changes, message):
    with pytest.raises(ConfigError, match=message):
        RingMoEConfig(**changes)


def test_a_config_survives_its_file():
    config = ringmoe_14b().pruned([(0, 2)] * 24)
    assert from_dict(RingMoEConfig, to_dict(config)) == config


def test_stages_and_maps():
    config = RingMoEConfig()
    assert [config.stage_of(block) for block in (0, 1, 2, 4, 21, 22)] == [0, 0, 1, 2, 2, 3]
    assert [config.map_size(stage) for stage in range(4)] == [48, 24, 12, 6]
    assert config.stride == 32
    with pytest.raises(IndexError):
        config.stage_of(24)


def test_sub_models_keep_the_order_and_refuse_strangers():
    config = RingMoEConfig()
    assert config.for_modalities(("sar_l2", "ms")).modalities == ("ms", "sar_l2")
    assert config.dense().num_routed == 0
    assert config.pruned([(k % 4,) for k in range(24)]).collaborative_ids(5) == (1,)
    for keys in (("opt", "thermal"), ()):
        with pytest.raises(ConfigError, match="no sub-model of"):
            config.for_modalities(keys)


def test_the_sizes_of_the_paper_come_out():
    variants = ringmoe_14b().variants()
    billions = {name: round(config.num_weights() / 1e9, 2) for name, config in variants.items()}
    assert billions == {
        "whole": 14.74,
        "opt": 6.53,
        "ms": 6.53,
        "sar_l1": 6.53,
        "sar_l2": 6.53,
        "opt, EP 75 %": 5.85,
        "opt, EP 50 %": 5.16,
        "opt, EP 25 %": 4.48,
        "opt, dense": 1.06,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_variant_has_as_many_parameters_as_its_config_says(name):
    for variant in preset(name).variants().values():
        with torch.device("meta"):
            model = build_model(variant)
        assert variant.num_params() == sum(parameter.numel() for parameter in model.parameters())


def test_parts_of_the_count_are_the_parts_of_the_model(config):
    config = config.pruned([(0, 3), (1,), ()])
    with torch.device("meta"):
        model = build_model(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def total(*words):
        return sum(size for name, size in sizes.items() if any(word in name for word in words))

    counted = config.params()
    assert counted["attention"] == total(".attention.")
    assert counted["routers"] == total(".router.")
    assert counted["specialised"] + counted["collaborative"] == total(".experts.")
    assert counted["shared"] == total(".shared.")
    assert counted["merging"] == total("merges.")
    assert counted["decoders"] == total("decoders.")
    assert counted["positions"] == total("positions")
    assert counted["embedding"] == total("embed.", "embed_norm.", "mask_token")


def test_an_expert_parallel_rank_holds_its_share_of_the_experts():
    config = ringmoe_14b()
    counted = config.params()
    with torch.device("meta"):
        model = build_model(config, ExpertParallel(size=4, rank=1))
    routed = counted["specialised"] + counted["collaborative"]
    assert sum(p.numel() for p in model.parameters()) == config.num_params() - routed * 3 // 4


def test_active_parameters_are_those_of_the_model_with_k_experts_of_each_family(config):
    assert config.num_active_params("ms") == replace(
        config.for_modalities(("ms",)), num_specialised=1, num_collaborative=1
    ).num_params() + 2 * (16 + 2 * 32) * (1 + 3)  # the gates look at all experts
    assert config.dense().num_active_params("opt") == config.dense().for_modalities(("opt",)).num_params()


def test_operations_are_those_that_a_forward_pass_does(config, build):
    for variant in (config.dense(), config, replace(config, top_k=2), replace(config, window=5)):
        model = build(replace(variant, decoders=False)).eval()
        counts = []
        for num in (1, 3):  # the position bias is computed once for all images: only the difference is per image
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.features(random_images("ms", num, 32), "ms")
            counts.append(counter.get_total_flops())
        assert (counts[1] - counts[0]) / 2 == model.config.flops_per_image("ms")
    assert config.flops_per_image("ms") - replace(config, decoders=False).flops_per_image("ms") == 2 * 16 * 32 * 64 * 4


def test_training_costs_three_forward_passes(config):
    images = {"opt": 2, "ms": 3}
    forward = 2 * config.flops_per_image("opt") + 3 * config.flops_per_image("ms")
    assert config.training_flops(images) == 3 * forward


def test_every_family_states_a_config_that_the_registry_can_tell_apart():
    assert len({family.config for family in FAMILIES.values()}) == len(FAMILIES)
