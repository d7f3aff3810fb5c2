"""Which collaborative experts survive, against hand-worked frequencies."""

import pytest

from ringmoe.compress.ep import PruningRule, survivors, union
from ringmoe.errors import ConfigError

FREQUENCIES = (0.05, 0.50, 0.15, 0.30)


@pytest.mark.parametrize(("share", "kept"), [(0.25, (1,)), (0.5, (1, 3)), (0.75, (1, 2, 3)), (1.0, (0, 1, 2, 3))])
def test_top_keeps_exactly_one_two_three_of_four(share, kept):
    assert survivors(FREQUENCIES, PruningRule("top", share)) == kept


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_percentile_of_eq_16_is_the_top_share(share):
    by_percentile = survivors(FREQUENCIES, PruningRule("percentile", 100 * (1 - share)))
    assert by_percentile == survivors(FREQUENCIES, PruningRule("top", share))


def test_a_threshold_is_exceeded_not_met():
    assert survivors(FREQUENCIES, PruningRule("threshold", 0.1)) == (1, 2, 3)
    assert survivors(FREQUENCIES, PruningRule("threshold", 0.15)) == (1, 3)


def test_the_most_used_expert_always_stays():
    assert survivors(FREQUENCIES, PruningRule("threshold", 0.9)) == (1,)
    assert survivors((0.0, 0.0), PruningRule("threshold", 0.0)) == (0,)
    assert survivors((0.3, 0.7), PruningRule("top", 0.01)) == (1,)


def test_ties_keep_the_first():
    assert survivors((0.25,) * 4, PruningRule("top", 0.5)) == (0, 1)
    assert survivors((0.25,) * 4, PruningRule("percentile", 75)) == (0, 1, 2, 3)


def test_several_modalities_keep_the_union_by_original_id():
    rule = PruningRule("top", 0.34)
    frequencies = {"opt": (0.7, 0.2, 0.1), "ms": (0.6, 0.3, 0.1), "sar_l2": (0.0, 0.1, 0.9)}
    assert union(frequencies, (1, 4, 6), rule) == (1, 4, 6)
    assert union({"opt": (0.7, 0.2, 0.1), "ms": (0.6, 0.3, 0.1)}, (1, 4, 6), PruningRule("top", 0.33)) == (1,)


@pytest.mark.parametrize(("kind", "value"), [("top", 0.0), ("top", 25), ("percentile", 101), ("threshold", -0.1)])
def test_values_out_of_range_are_refused(kind, value):
    with pytest.raises(ConfigError, match=f"{kind} {value:g}"):
        PruningRule(kind, value)


def test_rules_speak():
    assert str(PruningRule()) == "the top 25% most used of each modality"
    assert "percentile 75" in str(PruningRule("percentile", 75))
    assert "more than 10%" in str(PruningRule("threshold", 0.1))
