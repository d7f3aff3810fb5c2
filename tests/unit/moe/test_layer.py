"""The layer's borders: names, sizes, what it refuses."""

from dataclasses import replace

import pytest
import torch

from ringmoe.errors import ConfigError
from ringmoe.moe import ExpertParallel, RMoEConfig, RMoELayer
from ringmoe.naming import canonical_entries

CONFIG = RMoEConfig(dim=4, hidden=8, modalities=("opt", "sar"), num_specialised=2, collaborative_ids=(0, 1))


def names(layer: RMoELayer) -> list[str]:
    return [entry.name for entry in canonical_entries(layer)]


def test_every_tensor_has_its_global_name():
    def ffns(*experts: str) -> list[str]:
        return [f"{expert}.{tensor}" for expert in experts for tensor in ("w1", "b1", "w2", "b2")]

    gates = ("specialised.opt", "specialised.sar", "collaborative")
    assert sorted(names(RMoELayer(CONFIG, 0, ExpertParallel()))) == sorted(
        ffns("shared", *CONFIG.expert_names)
        + [f"router.{gate}.{tensor}" for gate in gates for tensor in ("gate", "noise")]
    )


def test_ranks_together_have_the_experts_of_one_rank_and_nothing_else():
    alone = names(RMoELayer(CONFIG, 0, ExpertParallel()))
    ranks = [names(RMoELayer(CONFIG, 0, ExpertParallel(size=2, rank=rank))) for rank in range(2)]
    assert set(ranks[0]) | set(ranks[1]) == set(alone)
    assert all(name.startswith(("shared", "router")) for name in set(ranks[0]) & set(ranks[1]))


@pytest.mark.parametrize(
    ("change", "prefixes"),
    [
        ({"num_specialised": 0, "collaborative_ids": ()}, {"shared"}),
        ({"num_specialised": 0}, {"shared", "router", "collaborative"}),
        ({"collaborative_ids": ()}, {"shared", "router", "specialised"}),
        ({"shared": False}, {"router", "specialised", "collaborative"}),
    ],
)
def test_a_family_of_size_zero_has_no_tensors(change: dict[str, object], prefixes: set[str]):
    layer = RMoELayer(replace(CONFIG, **change), 0, ExpertParallel())
    assert {name.partition(".")[0] for name in names(layer)} == prefixes
    routed = "specialised" in prefixes or "collaborative" in prefixes
    assert (layer.experts is not None) == routed


def test_every_module_says_how_its_parameters_are_filled():
    for module in RMoELayer(CONFIG, 0, ExpertParallel()).modules():
        own = {name for name, _ in module.named_parameters(recurse=False)}
        assert own == set(getattr(module, "init_kinds", {}))


def test_it_builds_without_memory():
    with torch.device("meta"):
        layer = RMoELayer(replace(CONFIG, dim=3584, hidden=14336), 0, ExpertParallel())
    assert all(parameter.is_meta for parameter in layer.parameters())


@pytest.mark.parametrize("sizes", [(3, 3), (7,), (3, 2, 2)])
def test_sizes_that_do_not_fit_the_tokens_are_refused(sizes: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"7 tokens of \('opt', 'sar'\)"):
        RMoELayer(CONFIG, 0, ExpertParallel())(torch.zeros(7, 4), sizes)


def test_a_layer_says_which_one_it_is_when_ranks_do_not_fit():
    with pytest.raises(ConfigError, match="RMoE layer 12"):
        RMoELayer(CONFIG, 12, ExpertParallel(size=4))
