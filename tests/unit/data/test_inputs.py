import json
from dataclasses import replace

import pytest

from ringmoe.data.inputs import InputStatistics
from ringmoe.errors import ConfigError, ShardError


@pytest.fixture
def contract(shards):
    return shards.inputs("ms")


def test_it_travels_as_json(contract):
    text = json.dumps(contract.to_dict(), allow_nan=False)
    again = InputStatistics.from_dict(json.loads(text))
    assert again == contract
    again.check_compatible(contract, ours="a", theirs="b")
    broken = json.loads(text)
    del broken["statistics"][0]["units"]
    with pytest.raises(ConfigError, match="units"):
        InputStatistics.from_dict(broken)
    with pytest.raises(ConfigError, match="hold spec; expected spec, statistics"):
        InputStatistics.from_dict({"spec": broken["spec"]})


def test_other_bands_are_named_on_both_sides(contract):
    other = replace(contract, spec=replace(contract.spec, bands=("R", "G", "B", "NIR")))
    with pytest.raises(ShardError, match="checkpoint c has B, G, R, NIR; shards s has R, G, B, NIR"):
        contract.check_compatible(other, ours="checkpoint c", theirs="shards s")


def test_another_sensor_is_named_on_both_sides(contract):
    (group,) = contract.groups
    for changed in (replace(group, sensor="GF-2"), replace(group, units="reflectance"), replace(group, nodata="0.0")):
        other = replace(contract, groups=(group, changed))
        with pytest.raises(ShardError) as caught:
            contract.check_compatible(other, ours="checkpoint c", theirs="shards s")
        assert f"shards s holds {changed}" in str(caught.value)
        assert f"checkpoint c knows only {group}" in str(caught.value)
        other.check_compatible(contract, ours="shards s", theirs="checkpoint c")


def test_other_statistics_are_named_on_both_sides(contract):
    (group,) = contract.groups
    shifted = tuple(replace(channel, mean=channel.mean + 1) for channel in group.channels)
    other = replace(contract, groups=(replace(group, channels=shifted),))
    with pytest.raises(ShardError, match=r"channel B: checkpoint c was normalised with mean .*; shards s has mean"):
        contract.check_compatible(other, ours="checkpoint c", theirs="shards s")
