"""Batches of random images, for tests and benchmarks that need tokens and not pictures."""

from collections.abc import Sequence

import torch

from ringmoe import counter, modality
from ringmoe.batch import Batch, ModalityImages


def random_images(key: str, num: int, size: int, *, seed: int = 0) -> ModalityImages:
    """``num`` images of standard normal pixels, all channels present; a pure function of the arguments."""
    channels = modality.get(key).num_channels
    keys_B = counter.mix(torch.full((num,), counter.key("random image", seed, key)), torch.arange(num))
    pixels_BCHW = counter.normal(keys_B, channels * size**2).view(num, channels, size, size)
    names = tuple(f"{key}/{index}" for index in range(num))
    return ModalityImages(pixels_BCHW, torch.ones(num, channels, dtype=torch.bool), keys_B, names)


def random_batch(modalities: Sequence[str], num: int, size: int, *, seed: int = 0) -> Batch:
    """``num`` random images of each modality."""
    return Batch({key: random_images(key, num, size, seed=seed) for key in modalities})
