"""Usage measured on real shards, and shards that are refused."""

import pytest

from ringmoe.compress.calibration import calibrate
from ringmoe.errors import ConfigError, ShardError


def test_usage_of_one_modality_is_measured_on_its_tiles(trained, shards):
    seen: list[int] = []
    usage = calibrate(trained, [shards], modalities=("opt",), num_tiles=5, progress=seen.append)
    assert usage.modalities == ("opt",)
    assert usage.tokens == ((5 * 64,), (5 * 16,), (5 * 16,))
    assert seen == [5]
    assert usage.source == f"5 tiles of each modality of {shards}"
    assert usage == calibrate(trained, [shards], modalities=("opt",), num_tiles=5)
    everything = calibrate(trained, [shards], modalities=("opt",), num_tiles=10_000)
    assert "9 tiles" in everything.source


def test_shards_that_do_not_fit_are_refused(trained, shards, build_shards, tmp_path):
    with pytest.raises(ShardError, match="sar_l2"):
        calibrate(trained, [shards], num_tiles=2)
    darker = build_shards(tmp_path, "opt", highest=40)
    with pytest.raises(ShardError, match=r"checkpoint .* was normalised with .*; shards .* has"):
        calibrate(trained, [darker], modalities=("opt",), num_tiles=2)
    with pytest.raises(ConfigError, match="no sub-model of"):
        calibrate(trained, [shards], modalities=("ms",), num_tiles=2)
    with pytest.raises(ConfigError, match="on 0 tiles"):
        calibrate(trained, [shards], modalities=("opt",), num_tiles=0)
