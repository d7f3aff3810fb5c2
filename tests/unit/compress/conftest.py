"""A small RingMoE with random weights everywhere, and its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ringmoe import counter, modality
from ringmoe.batch import ModalityImages
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.config import to_dict
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries

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
