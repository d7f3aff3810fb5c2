"""Groups of ranks and shares of a checkpoint are arithmetic."""

import pytest

from ringmoe.distributed.topology import Topology
from ringmoe.errors import ConfigError


def test_ranks_are_grouped_as_the_engine_groups_them():
    topology = Topology(world=8, expert_parallel=2)
    assert [topology.ep_rank(rank) for rank in range(8)] == [0, 1] * 4
    assert topology.expert_data_ranks(5) == (1, 3, 5, 7)
    assert Topology(4, 1).expert_data_ranks(3) == (0, 1, 2, 3)
    assert Topology(4, 4).expert_data_ranks(3) == (3,)


@pytest.mark.parametrize(
    ("world", "size", "remedy"),
    [(6, 4, "use one of 1, 2,"), (3, 2, "use one of 1,"), (8, 8, "use one of 1, 2, 4,"), (8, 3, "1, 2, 4"), (4, 0, "")],
)
def test_sizes_that_do_not_fit_the_world_are_refused_with_those_that_do(world, size, remedy):
    with pytest.raises(ConfigError, match=rf"size {size} does not fit {world} ranks.*{remedy}"):
        Topology(world, size)


def test_a_world_without_ranks_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        Topology(0)


def test_every_family_must_be_divided_evenly():
    topology = Topology(4, 4)
    topology.check_experts({"specialised": 4, "collaborative": 8, "absent": 0})
    with pytest.raises(ConfigError, match=r"6 experts of the collaborative family: use one of 1, 2,"):
        topology.check_experts({"specialised": 4, "collaborative": 6})


def test_each_tensor_has_one_owner_who_holds_it_and_shares_are_even():
    topology = Topology(world=4, expert_parallel=2)
    shared = {f"layer{i}": 100 + i for i in range(20)}
    of_expert = {place: {f"expert{k}": 1000 for k in range(place, 16, 2)} for place in range(2)}
    owned = dict.fromkeys(range(4), 0)
    for rank in range(4):
        experts = of_expert[topology.ep_rank(rank)]
        owners = topology.owners(rank, shared=shared, experts=experts)
        backwards = topology.owners(
            rank, shared=dict(reversed(shared.items())), experts=dict(reversed(experts.items()))
        )
        assert owners == backwards, "the order of the names does not matter"
        assert owners.keys() == shared.keys() | experts.keys()
        assert {owners[name] for name in experts} == set(topology.expert_data_ranks(rank))
        assert {name: owners[name] for name in shared} == topology.owners(0, shared=shared, experts={})
        owned[rank] = sum(({**shared, **experts})[name] for name, owner in owners.items() if owner == rank)
    assert sum(owned.values()) == sum(shared.values()) + 16 * 1000
    assert max(owned.values()) - min(owned.values()) < 110
