"""What the order of samples costs at full size, and how well it shuffles.

    python benchmarks/order.py

*Cost*: a manifest of 40,000 shards with 400 million samples, shards and index as files of holes, is opened for training
by a fresh process: once as it is begun, once to go on far in an epoch. *Quality*: an archive of 400 shards of 1,024
tiles; two shards behind each other come from one scene. Compared are our windows, a full shuffle of all tiles, and
WebDataset's: shards in random order, then its own buffer, with as many tiles in memory as our loader holds (the batch
that is trained on and two ahead) and with its default of 1,000.

A window of our default size is judged; the others are reported.

* rank correlation: Spearman's, between a tile's place in the archive and the next one's, along an epoch;
* shards, scenes: how many different ones a global batch of 256 holds on average.
"""

import ctypes
import gc
import hashlib
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Found, claim, collect, one_thread, progress
from torch import Tensor
from webdataset.filters import _shuffle

from ringmoe.data.build import build
from ringmoe.data.layout import INDEX_DTYPE, index_name, shard_name
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.order import SampleOrder
from ringmoe.data.plan import BuildConfig
from ringmoe.raster.synth import SynthSettings, write_scenes
from ringmoe.raster.tiling import TilingConfig

FAMILY = "Order of samples"
_SHARDS, _SAMPLES = 40_000, 400_000_000  # of the large manifest
_TILE = 192
_BATCH = 256
_SMALL = (400, 1024)  # shards of the archive that is shuffled, tiles of each
_SHARDS_PER_SCENE = 2
_WINDOWS = (16, 64, 400)
_BUFFERS = {"as much memory": 3 * _BATCH, "its default": 1000}
_EPOCHS = 3


def make_large(folder: Path) -> Path:
    """A folder of shards whose manifest counts 400 million samples; its pixels are holes."""
    list(write_scenes(folder / "scenes", SynthSettings(seed=0, scenes=1, size=256)))
    small = build([folder / "scenes"], folder / "shards", BuildConfig(tiling=TilingConfig(tile=_TILE))).manifest
    values = json.loads((small.root / "manifest.json").read_bytes())
    values["modalities"] = {"opt": (entry := values["modalities"]["opt"])}
    tile_bytes, per_shard = 3 * _TILE**2, _SAMPLES // _SHARDS
    scene, split = entry["scenes"][0], entry["splits"]["train"]
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(_SHARDS)]
    names = [shard_name("opt", "train", number) for number in range(_SHARDS)]
    shard = split["shards"][0] | {"bytes": tile_bytes * per_shard, "samples": per_shard}
    split["shards"] = [shard | {"name": name, "sha256": digest} for name, digest in zip(names, digests, strict=True)]
    entry["scenes"] = [scene | {"name": f"area/{i}.tif", "slug": f"area-{i}"} for i in range(_SHARDS)]
    entry |= {"candidates": _SAMPLES, "dropped": {}, "splits": {"train": split}}
    entry["groups"][0]["tiles"] = {"train": _SAMPLES}
    (small.root / "manifest.json").write_text(json.dumps(values, indent=1))
    for name in names:
        with (small.root / name).open("wb") as file:
            file.truncate(tile_bytes * per_shard)
    with (small.root / index_name("opt", "train")).open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (_SAMPLES,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + _SAMPLES * INDEX_DTYPE.itemsize)
    return small.root


def opened(root: Path) -> tuple[float, float, float]:
    """CPU seconds until a loader stands on the large manifest and until it has found a batch; megabytes of growth."""
    one_thread(keep_memory=False)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what there is now
    before = _status("VmRSS")
    start = time.process_time()
    loader = Loader(DataConfig(shards=(root,), micro_batch=_BATCH), modalities=("opt",), image_size=_TILE, seed=0)
    ready = time.process_time() - start
    step = loader.num_steps_per_epoch - 7
    loader.check_state(loader.state(step))
    loader._orders["opt"].locate(torch.arange(step * _BATCH, (step + 1) * _BATCH))
    return ready, time.process_time() - start, (_status("VmHWM") - before) * 1024 / 1e6


def windows(window: int, epoch: int) -> Tensor:
    """An epoch of ours."""
    num_shards, tiles = _SMALL
    order = SampleOrder([tiles] * num_shards, seed=0, window=window)
    return order.locate(torch.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples))[1]


def full_shuffle(epoch: int) -> Tensor:
    """An epoch in which every order of all tiles is as likely as any other."""
    return torch.randperm(_SMALL[0] * _SMALL[1], generator=torch.Generator().manual_seed(epoch))


def buffer_shuffle(buffer: int, epoch: int) -> Tensor:
    """An epoch of WebDataset: shards shuffled, then tiles in a buffer."""
    num_shards, tiles = _SMALL
    generator = random.Random(epoch)
    shards = generator.sample(range(num_shards), num_shards)
    stream = (shard * tiles + tile for shard in shards for tile in range(tiles))
    return torch.tensor(list(_shuffle(stream, bufsize=buffer, initial=buffer, rng=generator)))


def rank_correlation(samples_N: Tensor) -> float:
    """Spearman's, of each sample's number and the next one's: numbers are ranks already."""
    return float(torch.corrcoef(torch.stack((samples_N[:-1], samples_N[1:])).double())[0, 1])


def distinct(samples_N: Tensor, tiles: int) -> float:
    """Different runs of so many tiles in a batch, on average."""
    runs_KB = (samples_N // tiles)[: len(samples_N) // _BATCH * _BATCH].view(-1, _BATCH).sort(1).values
    return float(((runs_KB[:, 1:] != runs_KB[:, :-1]).sum(1) + 1).double().mean())


def claims() -> Iterator[Found]:
    """All claims of the family."""
    yield from _costs()
    yield from _quality()


def _costs() -> Iterator[Found]:
    with tempfile.TemporaryDirectory() as folder:
        root = make_large(Path(folder))
        found = []
        for _ in progress(range(3), FAMILY):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                found.append(alone.submit(opened, root).result())
    ready, located, megabytes = (list(each) for each in zip(*found, strict=True))
    what = f"{_SHARDS:,} shards, {_SAMPLES // 10**6} million samples"
    turns = len(found)
    yield claim("ours / 2 s", f"{what}: opened", ready, [2.0] * turns, "<= 1")
    yield claim("ours / 1 s", f"{what}: opened, and gone on near the end of an epoch", located, [1.0] * turns, "<= 1")
    yield claim("ours / 500 MB", f"{what}: memory", megabytes, [500.0] * turns, "<= 1", unit="MB")


def _quality() -> Iterator[Found]:
    one_thread()
    tiles = _SMALL[1]
    measures: dict[str, Callable[[Tensor], float]] = {
        "rank correlation of neighbours": rank_correlation,
        f"shards in a batch of {_BATCH}": partial(distinct, tiles=tiles),
        f"scenes in a batch of {_BATCH}": partial(distinct, tiles=tiles * _SHARDS_PER_SCENE),
    }
    full = [full_shuffle(epoch) for epoch in range(_EPOCHS)]
    buffers = {name: [buffer_shuffle(size, epoch) for epoch in range(_EPOCHS)] for name, size in _BUFFERS.items()}
    for window in progress(_WINDOWS, FAMILY):
        ours = [windows(window, epoch) for epoch in range(_EPOCHS)]
        for measure, of in measures.items():
            setting, mine = f"{measure}, window of {window} shards", [of(epoch) for epoch in ours]
            target = "" if window != DataConfig().shuffle_window else "<= 0.25" if of is rank_correlation else ">= 4"
            for name, epochs in buffers.items():
                yield claim(
                    f"ours / WebDataset, {name}", setting, mine, [of(epoch) for epoch in epochs], target, unit=""
                )
            if of is not rank_correlation:  # that of a full shuffle is nothing but chance
                yield claim("ours / full shuffle", setting, mine, [of(epoch) for epoch in full], unit="")


def _status(name: str) -> int:
    """A line of the process's status, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    collect(claims())
