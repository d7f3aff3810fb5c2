"""The plan: arithmetic that can be checked against the paper and against the built model."""

import pytest

from ringmoe.compress.ep import PruningRule
from ringmoe.compress.plan import CompressionPlan, Options, make_plan
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage

FULL = RingMoEConfig()


def usage_for(config: RingMoEConfig, rows: list[list[int]], num_tokens: int = 100) -> Usage:
    """The same collaborative counts in every block, one row for each modality; specialised experts are not used."""
    layer = tuple((0,) * config.num_specialised + tuple(row) for row in rows)
    return Usage(
        modalities=config.modalities,
        num_specialised=config.num_specialised,
        counts=(layer,) * config.num_blocks,
        tokens=((num_tokens,) * len(rows),) * config.num_blocks,
        source="made up",
    )


@pytest.mark.parametrize("mode", ["ks", "ka", "kc"])
def test_the_papers_model_becomes_6_53_then_1_06_billion(mode):
    plan = make_plan(FULL, Options(mode=mode, modalities=("opt",)))
    assert [f"{column.weights / 1e9:.2f}" for column in plan.ledger] == ["14.74", "6.53", "1.06"]
    assert plan.result.num_routed == 0
    assert [len(block.merged) for block in plan.blocks] == [9] * 24


@pytest.mark.parametrize(("share", "billions"), [(0.25, "4.48"), (0.5, "5.16"), (0.75, "5.85")])
def test_the_papers_model_after_expert_pruning(share, billions):
    plan = make_plan(FULL, Options(mode="ep", modalities=("opt",), rule=PruningRule("top", share)))
    assert f"{plan.ledger[-1].weights / 1e9:.2f}" == billions
    assert plan.is_provisional


@pytest.mark.parametrize(
    "options", [Options(mode="extract", modalities=("opt",)), Options(mode="kc", modalities=("ms",))]
)
def test_blocks_add_up_to_the_ledger(options):
    plan = make_plan(FULL, options)
    for column, attribute in zip(plan.ledger[1:], ("params_before", "params_after"), strict=False):
        experts = sum(column.parts[part] for part in ("specialised", "collaborative", "shared"))
        assert sum(getattr(block, attribute) for block in plan.blocks) == experts


def test_ranks_follow_the_families(config):
    ranks = {expert.name: expert.rank for expert in make_plan(config, _kc("small-side")).blocks[1].merged}
    assert ranks == {
        **{f"specialised.opt.{k}": 4 for k in range(4)},
        **{f"collaborative.{k}": 4 for k in range(4)},
        "shared": None,
    }
    assert {e.rank for e in make_plan(config, _kc("literal")).blocks[1].merged} == {16, None}


def test_pruning_keeps_what_is_used_and_the_union_of_modalities(config):
    usage = usage_for(config, [[10, 70, 15, 5], [1, 2, 3, 94]])
    opt = make_plan(config, Options(mode="ep", modalities=("opt",)), usage)
    assert all((block.kept, block.dropped) == ((1,), (0, 2, 3)) for block in opt.blocks)
    assert opt.blocks[0].frequencies == {"opt": (0.1, 0.7, 0.15, 0.05)}
    assert opt.usage == "made up"
    assert opt.result.collaborative_kept == ((1,),) * 3
    both = make_plan(config, Options(mode="ep", modalities=("sar_l2", "opt")), usage)
    assert both.result.collaborative_kept == ((1, 3),) * 3
    assert both.options.modalities == ("opt", "sar_l2")


def test_pruning_again_chooses_among_the_survivors(config):
    pruned = config.for_modalities(("opt",)).pruned([(0, 1, 3)] * 3)
    usage = usage_for(pruned, [[10, 70, 0, 20]])
    plan = make_plan(pruned, Options(mode="ep", rule=PruningRule("top", 0.5)), usage)
    assert plan.result.collaborative_kept == ((1, 3),) * 3


def test_pruning_nothing_leaves_the_sub_model(config):
    usage = usage_for(config, [[25] * 4] * 2)
    plan = make_plan(config, Options(mode="ep", modalities=("opt",), rule=PruningRule("top", 1.0)), usage)
    assert plan.result == make_plan(config, Options(mode="extract", modalities=("opt",))).result


@pytest.mark.parametrize("mode", ["extract", "kc"])
def test_a_plan_is_json_and_back(config, mode):
    plan = make_plan(config, Options(mode=mode, modalities=("opt",)))
    assert CompressionPlan.from_dict(plan.to_dict()) == plan


def test_what_cannot_be_done_is_refused_in_words(config):
    dense = config.for_modalities(("opt",)).dense()
    bare = make_plan(config, Options(mode="extract", modalities=("opt",))).result
    other = usage_for(RingMoEConfig(modalities=config.modalities), [[25] * 4] * 2)
    unseen = usage_for(config, [[0] * 4] * 2, num_tokens=0)
    refusals = [
        (config, Options(mode="extract", modalities=("ms",)), None, "the model has opt, sar_l2"),
        (config, Options(mode="kc"), None, "say which the result shall"),
        (dense, Options(mode="ks"), None, "dense already"),
        (dense, Options(mode="ep"), None, "nothing to prune"),
        (bare, Options(mode="extract", keep_decoders=True), None, "no decoders to keep"),
        (config, Options(mode="ep", modalities=("opt",)), other, "24 layers.*model has 3"),
        (config, Options(mode="ep", modalities=("opt",)), unseen, "saw no token of 'opt'"),
        (config, Options(mode="ep", modalities=("opt", "sar_l2")), None, "give --usage"),
        (config, Options(mode="ep", modalities=("opt",), rule=PruningRule("threshold", 0.1)), None, "give --usage"),
    ]
    for source, options, usage, reason in refusals:
        with pytest.raises(ConfigError, match=reason):
            make_plan(source, options, usage)
    with pytest.raises(ConfigError, match="mode is 'svd'; it may be extract, ep, ks, ka, kc"):
        Options(mode="svd")


def test_more_experts_than_dimensions_is_refused(config):
    crowded = RingMoEConfig(
        modalities=("opt",),
        image_size=16,
        patch_size=2,
        depths=(1, 2),
        dims=(8, 16),
        head_dim=4,
        mask_unit=4,
        num_specialised=9,
    )
    with pytest.raises(ConfigError, match="rank 0: 9 experts share a matrix of 8 x 32"):
        make_plan(crowded, _kc("small-side"))


def _kc(rank: str) -> Options:
    return Options(mode="kc", modalities=("opt",), rank=rank)
