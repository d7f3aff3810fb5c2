"""How fast the whole loader is (read, augment, normalise) beside what eats its batches, and where its time goes.

    python benchmarks/whole_loader.py

* tiny: batches of the preset's 32 images, all four modalities, beside optimiser steps of its model on such batches. One
  thread; once in CPU time, which is what a core can feed, and once by the wall clock.
* image by image: the crops of a batch resampled together, beside ``torch.nn.functional.interpolate`` of each crop;
* products: the same beside two batched products with a matrix of weights for each image.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from harness import Contestant, Found, Profile, claim, collect, one_thread, progress, take_turns
from torch import Tensor
from training_step import Settings, run_of

from ringmoe import counter
from ringmoe.batch import Batch
from ringmoe.clock import Clock
from ringmoe.data.augment import CropConfig, Crops, _taps, random_crops, resample
from ringmoe.data.loader import Loader
from ringmoe.distributed.launch import start, stop
from ringmoe.train.build import build_trainer
from ringmoe.train.metrics import Metrics
from ringmoe.train.step import train_step
from ringmoe.train.trainer import Trainer

FAMILY = "Whole loader"
_ROUNDS = 9
_CROPS = ((3, 96, 96), (3, 192, 192), (4, 192, 192), (1, 192, 192), (3, 192, 96))  # channels, side of tile, of image
_IMAGES = 64


class Steps:
    """Optimiser steps of the model on batches that are there already."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._batch = trainer, trainer.loader.batch(0, 0)
        trainer.engine.set_lr(1e-4)

    def draw(self, turn: int) -> None:
        """Another batch for each turn."""
        self._batch = self._trainer.loader.batch(turn, 0)

    def step(self) -> None:
        """Forward, backward, update."""
        world = self._trainer.world
        train_step(self._trainer.engine, [self._batch], Metrics(), world.device, Clock(time.thread_time))


def together(pixels_BCHW: Tensor, crops: Crops, size: int) -> Tensor:
    """Ours."""
    return resample(pixels_BCHW, crops, size, "triangle")


def one_by_one(pixels_BCHW: Tensor, crops: Crops, size: int) -> Tensor:
    """Every crop resampled alone."""
    output_BCSS = pixels_BCHW.new_empty(*pixels_BCHW.shape[:2], size, size)
    for i, (top, left, height, width, flip) in enumerate(torch.stack(crops, dim=-1).tolist()):
        crop_1CHW = pixels_BCHW[i : i + 1, :, top : top + height, left : left + width]
        image_CSS = F.interpolate(crop_1CHW, size=(size, size), mode="bilinear", antialias=True)[0]
        output_BCSS[i] = image_CSS.flip(-1) if flip else image_CSS
    return output_BCSS


def by_products(pixels_BCHW: Tensor, crops: Crops, size: int) -> Tensor:
    """All crops as two batched products."""
    batch, channels, height, width = pixels_BCHW.shape
    rows_BSK, rows_weights_BSK = _taps(crops.top_B, crops.height_B, size)
    cols_BSK, cols_weights_BSK = _taps(crops.left_B, crops.width_B, size)
    rows_BSH = torch.zeros(batch, size, height).scatter_add_(2, rows_BSK, rows_weights_BSK)
    cols_BSW = torch.zeros(batch, size, width).scatter_add_(2, cols_BSK, cols_weights_BSK)
    cols_BWS = torch.where(crops.flip_B[:, None, None], cols_BSW.flip(1), cols_BSW).transpose(1, 2)
    return rows_BSH[:, None] @ (pixels_BCHW.flatten(1, 2) @ cols_BWS).view(batch, channels, height, size)


def parts_of(loader: Loader, step: int) -> dict[str, float]:
    """CPU seconds of each part of a batch."""
    clock = Clock(time.thread_time)
    clock.start()
    for key, num_images in loader.images_per_micro_batch.items():
        reader, normalise = loader._readers[key], loader._normalisers[key]
        with clock.during("order and keys"):
            epochs_B, samples_B = loader._locate(key, torch.arange(step * num_images, (step + 1) * num_images))
            keys_B = loader._keys(key, epochs_B, samples_B)
        with clock.during("read, compare checksums"):
            blocks, _ = reader.read(samples_B.numpy())
        for block in blocks:
            with clock.during("to float, limit, normalise"):
                tiles_BCHW = normalise(block.pixels_BCHW, torch.from_numpy(block.groups_B))
            with clock.during("crop, resample, flip, phase"):
                loader._crop(key, tiles_BCHW, keys_B[torch.from_numpy(block.places_B)])
    return clock.stop()


def claims() -> Iterator[Found]:
    """All claims of the family."""
    yield from _beside_tiny()
    yield from _resampling()


def _beside_tiny() -> Iterator[Found]:
    settings = Settings()
    setting = f"{settings.preset}, {settings.micro_batch} images, {settings.dtype}"
    with tempfile.TemporaryDirectory() as folder:
        with closing(build_trainer(run_of(settings, Path(folder)), start())) as trainer:
            one_thread()
            loader, steps = trainer.loader, Steps(trainer)
            place = [0]

            def load() -> Batch:
                place[0] += 1
                return loader.batch(place[0], 0)

            contestants = {"ours": Contestant(load), "tiny": Contestant(steps.step, steps.draw)}
            clocks: dict[str, Callable[[], float]] = {"CPU time": time.process_time, "wall clock": time.perf_counter}
            for name, now in progress(list(clocks.items()), FAMILY):
                seconds = take_turns(contestants, _ROUNDS, now=now)
                rates = {who: [settings.micro_batch / spent for spent in seconds[who]] for who in contestants}
                yield claim("ours / tiny", f"{setting}, {name}", rates["ours"], rates["tiny"], ">= 10", unit="images/s")
            parts = [parts_of(loader, step) for step in range(_ROUNDS)]
        stop()
    spent = {name: median(part[name] for part in parts) for name in parts[0]}
    shares = {name: seconds / sum(spent.values()) for name, seconds in spent.items()}
    yield Profile(name="a batch of the loader", setting=setting, shares=shares)


def _resampling() -> Iterator[Found]:
    for channels, side, size in progress(_CROPS, FAMILY):
        pixels_BCHW = torch.rand(_IMAGES, channels, side, side)
        crops = random_crops(counter.mix(torch.tensor(0), torch.arange(_IMAGES)), side, CropConfig())
        ways = {
            name: partial(way, pixels_BCHW, crops, size)
            for name, way in (("ours", together), ("image by image", one_by_one), ("products", by_products))
        }
        for way in ways.values():
            torch.testing.assert_close(way(), ways["image by image"](), rtol=0, atol=5e-5)
        seconds = take_turns({name: Contestant(way) for name, way in ways.items()}, _ROUNDS)
        rates = {name: [_IMAGES / spent for spent in seconds[name]] for name in ways}
        setting = f"{_IMAGES} crops of {channels} x {side} x {side} to {size} x {size}"
        for peer in ("image by image", "products"):
            yield claim(f"ours / {peer}", setting, rates["ours"], rates[peer], ">= 1", unit="images/s")


if __name__ == "__main__":
    collect(claims())
