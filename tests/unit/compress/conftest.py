"""A small RingMoE with random weights everywhere, and its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ringmoe import counter, modality
from ringmoe.batch import ModalityImages
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.config import to_dict
from ringmoe.data.build import build as build_shards_of
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.plan import BuildConfig
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries
from ringmoe.raster.tiling import TilingConfig
from ringmoe.raster.write import write_geotiff

CONFIG = RingMoEConfig(
    modalities=("opt", "sar_l2"),
    image_size=16,
    patch_size=2,
    depths=(1, 2),
    dims=(8, 16),
    head_dim=4,
    window=4,
    mask_unit=4,
)


def build(config: RingMoEConfig, *, seed: int = 0) -> RingMoE:
    """A model whose every parameter is random by its name, biases and gates too."""
    model = RingMoE(config)
    for entry in canonical_entries(model):
        generator = torch.Generator().manual_seed(counter.key(seed, entry.name))
        entry.tensor.copy_(torch.randn(entry.tensor.shape, generator=generator) * 0.3)
    return model.eval()


def write(model: RingMoE, path: Path, *, dtype: torch.dtype = torch.float32) -> CheckpointReader:
    """The model's checkpoint, in several files."""
    inputs = {key: {"spec": modality.get(key).to_dict(), "statistics": []} for key in model.config.modalities}
    with CheckpointWriter(path, max_file_bytes=20_000) as writer:
        for entry in canonical_entries(model):
            writer.add(entry.name, entry.tensor.to(dtype))
        config = {"format": 1, "family": "ringmoe", "model": to_dict(model.config), "inputs": inputs}
        writer.commit(config=config, step=12)
    return CheckpointReader(path)


def images_of(key: str, num: int = 2, *, size: int = 16) -> ModalityImages:
    """Random images of one modality."""
    channels = {"opt": 3, "sar_l2": 1}[key]
    generator = torch.Generator().manual_seed(channels)
    return ModalityImages(
        pixels_BCHW=torch.randn(num, channels, size, size, generator=generator),
        present_BC=torch.ones(num, channels, dtype=torch.bool),
        keys_B=torch.arange(num),
        sample_ids=tuple(f"{key}/{n}" for n in range(num)),
    )


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
    build_shards_of([folder / key], out, BuildConfig(tiling=TilingConfig(tile=16, stride=16)), modality=key)
    return out


@pytest.fixture(scope="session")
def build_model() -> Callable[..., RingMoE]:
    return build


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., CheckpointReader]:
    return write


@pytest.fixture(scope="session")
def images() -> Callable[..., ModalityImages]:
    return images_of


@pytest.fixture(scope="session")
def config() -> RingMoEConfig:
    return CONFIG


@pytest.fixture(scope="session")
def model() -> RingMoE:
    return build(CONFIG)


@pytest.fixture(scope="session")
def reader(model, tmp_path_factory) -> CheckpointReader:
    return write(model, tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return shards_of(tmp_path_factory.mktemp("opt"), "opt")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def build_shards() -> Callable[..., Path]:
    return shards_of
