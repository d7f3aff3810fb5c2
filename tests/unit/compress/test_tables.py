"""What a person reads before anything is written."""

import io

from rich.console import Console

from ringmoe.compress.apply import Merge
from ringmoe.compress.ep import PruningRule
from ringmoe.compress.plan import Options, make_plan
from ringmoe.compress.tables import ledger_table, merge_table, plan_table
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage


def rendered(table) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_merge_says_ranks_and_afterwards_scales(config):
    plan = make_plan(config, Options(mode="kc", modalities=("opt",)))
    before = rendered(plan_table(plan))
    assert "knowledge compressing (kc) for opt" in before
    assert "4 specialised at rank 2, 4 collaborative at rank 2, shared" in before
    assert "0.00 M -> 0.00 M" in before  # 8 wide
    assert "0.02 M -> 0.00 M" in before  # 16 wide
    assert " 1-2 " in before
    merges = {f"blocks.{b}.moe.shared.{w}": Merge(1.5 + b, 1.0) for b in range(3) for w in ("w1", "w2")}
    merges["blocks.2.moe.shared.w2"] = Merge(None, 1.0)
    after = rendered(merge_table(plan, merges))
    for figure in ("|W1| / |W1 shared|", "1.50", "2.50", "3.50", " - "):
        assert figure in after


def test_pruning_says_who_stays_and_how_much_it_is_used(config):
    layer = ((0, 0, 0, 0, 70, 5, 20, 5), (0, 0, 0, 0, 1, 1, 1, 97))
    usage = Usage(
        modalities=config.modalities,
        num_specialised=4,
        counts=(layer,) * 3,
        tokens=((100, 100),) * 3,
        source="made up",
    )
    options = Options(mode="ep", modalities=("opt", "sar_l2"), rule=PruningRule("top", 0.25))
    text = rendered(plan_table(make_plan(config, options, usage)))
    assert "8 specialised, collaborative 0 (opt 70%, sar_l2 1%), 3 (opt 5%, sar_l2 97%), shared" in text
    assert "collaborative 1, 2" in text
    assert "the top 25% most used of each modality" in text


def test_a_provisional_plan_names_no_experts(config):
    text = rendered(plan_table(make_plan(config, Options(mode="ep", modalities=("opt",)))))
    assert "1 of 4 collaborative, by usage" in text
    assert "3 of 4" in text


def test_the_ledger_of_the_papers_model():
    plan = make_plan(RingMoEConfig(), Options(mode="kc", modalities=("opt",)))
    text = rendered(ledger_table(plan, item_bytes=2))
    for figure in ("14.740 B", "6.532 B", "1.060 B", "29.56 GB", "2.12 GB", "on disk, 16 bit"):
        assert figure in text
