import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringmoe.data.mixing import MixtureConfig, apportion, images_per_micro_batch, tempered
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


def test_a_temperature_lies_between_the_sizes_and_equal_shares():
    sizes = {"a": 900, "b": 90, "c": 10}
    assert apportion(1000, tempered(sizes, 1)) == sizes
    assert apportion(1000, tempered(sizes, 2)) == {"a": 703, "b": 223, "c": 74}  # 30 : 9.49 : 3.16
    assert apportion(999, tempered(sizes, float("inf"))) == {"a": 333, "b": 333, "c": 333}
    assert MixtureConfig(temperature=2).split_images(10, sizes) == {"a": 7, "b": 2, "c": 1}
    assert MixtureConfig(quotas={"c": 1, "b": 8, "a": 1}).split_images(10, sizes) == {"a": 1, "b": 8, "c": 1}


def test_folders_share_a_modality_by_weights_or_temperature():
    sizes = {0: 900, 2: 100}  # the second of three folders does not hold the modality
    assert MixtureConfig().share_sets(4096, sizes, 3) is None
    assert MixtureConfig(set_weights=(1, 5, 3)).share_sets(4096, sizes, 3) == {0: 1024, 2: 3072}
    assert MixtureConfig(set_temperature=2).share_sets(4096, sizes, 3) == {0: 3072, 2: 1024}
    assert MixtureConfig(set_weights=(1e9, 1, 1)).share_sets(4096, sizes, 3) == {0: 4095, 2: 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"a": 1.0}, "temperature": 2}, "--data.weights and --data.temperature each say"),
        ({"temperature": 2, "quotas": {"a": 1}}, "--data.temperature and --data.quotas each say"),
        ({"set_weights": (1.0,), "set_temperature": 1}, "--data.set-weights and --data.set-temperature each say"),
        ({"temperature": 0.5}, "data.temperature is 0.5; it must be at least 1"),
        ({"set_temperature": float("nan")}, "data.set_temperature is nan"),
    ],
)
def test_shares_are_given_in_one_way(options, message):
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quotas": {"a": 3}}, "quotas are for a but the model's modalities are a, b"),
        ({"quotas": {"a": 3, "b": 2}}, r"add up to 5 images, but a micro-batch has 6: set --data.micro-batch 5"),
        ({"quotas": {"a": 6, "b": 0}}, "quota of 'b' is 0; it must be at least 1"),
    ],
)
def test_quotas_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(**options).split_images(6, {"a": 10, "b": 10})


def test_weights_that_do_not_fit_the_folders_are_refused():
    with pytest.raises(ConfigError, match="has 2 weights, but 3 folders"):
        MixtureConfig(set_weights=(1, 2)).share_sets(4096, {0: 1}, 3)
    with pytest.raises(ConfigError, match=r"set weight 2 is -1\.0.*leave its folder out"):
        MixtureConfig(set_weights=(1.0, -1.0)).share_sets(4096, {0: 1}, 2)
    with pytest.raises(ConfigError, match=r"give --data\.quotas"):
        MixtureConfig(temperature=2).weights_without_shards()
