"""What a layer may be made of."""

from dataclasses import replace

import pytest

from ringmoe.errors import ConfigError
from ringmoe.moe import ExpertParallel, RMoEConfig

CONFIG = RMoEConfig(dim=8, hidden=32, modalities=("opt", "sar"), num_specialised=2, collaborative_ids=(0, 3))


def test_experts_are_listed_by_modality_and_keep_their_original_ids():
    assert CONFIG.expert_names == (
        "specialised.opt.0",
        "specialised.opt.1",
        "specialised.sar.0",
        "specialised.sar.1",
        "collaborative.0",
        "collaborative.3",
    )
    assert len(CONFIG.expert_names) == CONFIG.num_routed == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"num_specialised": -1}, "num_specialised is -1"),
        ({"modalities": ()}, "modalities"),
        ({"modalities": ("opt", "opt")}, "different keys"),
        ({"collaborative_ids": (3, 1)}, "ascending"),
        ({"collaborative_ids": (1, 1)}, "each once"),
        ({"collaborative_ids": (-1, 1)}, "from 0"),
        ({"num_specialised": 0, "collaborative_ids": (), "shared": False}, "no experts at all"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)


def test_every_rank_holds_the_same_share_of_every_family():
    config = replace(CONFIG, num_specialised=4, collaborative_ids=(0, 1, 2, 3))
    held = [ExpertParallel(size=2, rank=rank).local(config.expert_names) for rank in range(2)]
    assert sorted(held[0] + held[1]) == sorted(config.expert_names)
    for rank, names in enumerate(held):
        assert len(names) == 6
        assert all(int(name.rpartition(".")[2]) % 2 == rank for name in names)


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"num_specialised": 4, "collaborative_ids": (0, 1, 2, 3)}, 3),  # 4 experts on 3 ranks
        ({"num_specialised": 4, "collaborative_ids": (0, 1, 2)}, 2),  # pruned to an odd number
        ({"num_specialised": 4, "collaborative_ids": (0, 2)}, 2),  # both survivors belong to rank 0
        ({"num_specialised": 3, "collaborative_ids": ()}, 2),
    ],
)
def test_uneven_families_are_refused_with_a_remedy(change: dict[str, object], size: int):
    config = replace(CONFIG, **change)
    ExpertParallel(size=1).check(config, "RMoE layer 5")
    with pytest.raises(ConfigError, match=r"RMoE layer 5.*divides the number of experts of every family"):
        ExpertParallel(size=size).check(config, "RMoE layer 5")


@pytest.mark.parametrize(("size", "rank"), [(0, 0), (2, 2), (2, -1)])
def test_a_rank_must_exist(size: int, rank: int):
    with pytest.raises(ConfigError, match="rank"):
        ExpertParallel(size=size, rank=rank)
