"""Usage measured on real shards, and shards that are refused."""

from pathlib import Path

import numpy as np
import pytest

from ringmoe import modality
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.compress.calibration import calibrate
from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.plan import BuildConfig
from ringmoe.errors import ConfigError, ShardError
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff


def shards_of(folder: Path, key: str, *, highest: int = 255) -> Path:
    """Shards of one scene of noise: 48 x 48 pixels, nine tiles."""
    draw = np.random.default_rng(0)
    bands = modality.get(key).bands
    write_geotiff(
        folder / key / "scene.tif",
        draw.integers(1, highest, (len(bands), 48, 48)).astype(np.uint8),
        crs="EPSG:32631",
        transform=(1.0, 0.0, 500000.0, 0.0, -1.0, 5000000.0),
        descriptions=bands,
        tags={},
    )
    out = folder / f"{key} shards"
    build([folder / key], out, BuildConfig(tiling=TilingConfig(tile=16, stride=16)), modality=key)
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return shards_of(tmp_path_factory.mktemp("opt"), "opt")


@pytest.fixture(scope="module")
def trained(reader, shards, tmp_path_factory) -> CheckpointReader:
    """The model's checkpoint with the inputs of the shards, as if it had been trained on them."""
    loader = Loader(DataConfig(shards=(shards,), micro_batch=1), modalities=("opt",), image_size=16, seed=0)
    inputs = {key: statistics.to_dict() for key, statistics in loader.statistics.items()}
    loader.close()
    path = tmp_path_factory.mktemp("trained") / "model"
    with CheckpointWriter(path) as writer:
        for name in reader.names:
            writer.add(name, reader.tensor(name))
        writer.commit(config=reader.config | {"inputs": inputs})
    return CheckpointReader(path)


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


def test_shards_that_do_not_fit_are_refused(trained, shards, tmp_path):
    with pytest.raises(ShardError, match="sar_l2"):
        calibrate(trained, [shards], num_tiles=2)
    darker = shards_of(tmp_path, "opt", highest=40)
    with pytest.raises(ShardError, match=r"checkpoint .* was normalised with .*; shards .* has"):
        calibrate(trained, [darker], modalities=("opt",), num_tiles=2)
    with pytest.raises(ConfigError, match="no sub-model of"):
        calibrate(trained, [shards], modalities=("ms",), num_tiles=2)
    with pytest.raises(ConfigError, match="on 0 tiles"):
        calibrate(trained, [shards], modalities=("opt",), num_tiles=0)
