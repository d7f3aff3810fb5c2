import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringmoe.data.mixing import images_per_micro_batch
from ringmoe.errors import ConfigError

FOUR = ("opt", "ms", "sar_l1", "sar_l2")


def test_counts_follow_the_weights():
    paper = {"opt": 302.9, "ms": 35.9, "sar_l1": 5.6, "sar_l2": 87.4}
    assert images_per_micro_batch(64, FOUR, paper) == {"opt": 45, "ms": 5, "sar_l1": 1, "sar_l2": 13}
    assert images_per_micro_batch(6, FOUR, {}) == {"opt": 2, "ms": 2, "sar_l1": 1, "sar_l2": 1}
    assert images_per_micro_batch(5, FOUR, paper) == {"opt": 2, "ms": 1, "sar_l1": 1, "sar_l2": 1}


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), extra=st.integers(0, 300))
def test_counts_fill_the_batch_and_no_modality_is_left_out(weights, extra):
    names = tuple(f"m{i}" for i in range(len(weights)))
    num = len(names) + extra
    counts = images_per_micro_batch(num, names, dict(zip(names, weights, strict=True)))
    assert tuple(counts) == names
    assert sum(counts.values()) == num
    assert min(counts.values()) >= 1
    for name, weight in zip(names, weights, strict=True):
        assert counts[name] < num * weight / sum(weights) + 1 + 1e-6 or counts[name] == 1


@pytest.mark.parametrize(
    ("num", "weights", "message"),
    [
        (3, {}, "at least 4"),
        (8, {"opt": 1.0}, "weights are for opt but the model's modalities are opt, ms"),
        (8, dict.fromkeys((*FOUR, "hyper"), 1.0), "hyper"),
        (8, dict.fromkeys(FOUR, 1.0) | {"ms": 0.0}, "'ms' is 0.0"),
        (8, dict.fromkeys(FOUR, 1.0) | {"ms": float("nan")}, "'ms' is nan"),
    ],
)
def test_impossible_mixtures_are_refused(num, weights, message):
    with pytest.raises(ConfigError, match=message):
        images_per_micro_batch(num, FOUR, weights)
