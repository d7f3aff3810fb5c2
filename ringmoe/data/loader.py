"""Shards to batches: what each rank reads at each step is a pure function of the step.

A batch holds the same number of images of each modality on every rank. Reading, cropping and normalising of later
batches goes on in a thread while one is trained on; nothing of it has a state, so a run is continued by asking for the
step at which it stopped.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.batch import Batch, ModalityImages
from ringmoe.data.augment import CropConfig, random_crops, resample, turn_phase, whole_tiles
from ringmoe.data.inputs import InputStatistics
from ringmoe.data.layout import Split
from ringmoe.data.manifest import Manifest
from ringmoe.data.mixing import MixtureConfig
from ringmoe.data.normalise import Normaliser
from ringmoe.data.order import BLOCK, MixedOrder, SampleOrder, even_share, micro_batch_positions
from ringmoe.data.prefetch import Prefetch
from ringmoe.data.read import TileReader
from ringmoe.data.storage import Folder, Location, RemoteConfig
from ringmoe.data.substitute import find_bad, substituted
from ringmoe.errors import ConfigError, ShardError, TileError

# B images of one modality, C channels, S side of an image

_CHUNK = 256  # positions that are located at once: few take as long as many


@dataclass(frozen=True, kw_only=True)
class DataConfig(MixtureConfig):
    """Which shards are read, and how batches are made of them.

    Attributes:
        shards: Folders made by ``ringmoe shards build``, or URLs of such; all of them are mixed.
        remote: How those are read that are URLs.
        micro_batch: Images of all modalities together in one micro-batch of one rank.
        crop: Random resized crop and flip of training.
        random_phase: Whether training turns each complex image by a random angle.
        shuffle_window: Shards whose samples are mixed with each other; more mix better and read more files at a time.
            See docs/data_order.md for what each size is worth.
        prefetch: Steps that are made ahead.
        verify: Whether the checksum of every tile is compared while it is read.
        bad_tiles: Share of a modality's tiles that may turn out not to be what was written: each is named, counted and
            replaced by another one of its folder. More than that stop the run; 0 stops it at the first.
    """

    shards: tuple[Location, ...] = ()
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    micro_batch: int = 16
    crop: CropConfig = field(default_factory=CropConfig)
    random_phase: bool = True
    shuffle_window: int = 64
    prefetch: int = 2
    verify: bool = True
    bad_tiles: float = 0.01

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range, or shares are given in several ways.
        """
        super().__post_init__()
        for name in ("micro_batch", "shuffle_window", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be at least 1; it is {getattr(self, name)}")
        if not 0 <= self.bad_tiles < 1:
            raise ConfigError(f"data.bad_tiles is a share of all tiles, 0 or more and below 1; it is {self.bad_tiles}")


class Share(NamedTuple):
    """What one data set is of a modality's images.

    Attributes:
        folders: Folders of shards that make it up; their tiles are alike.
        num_samples: Tiles of all of them.
        part: Of the modality's images, at most 1.
    """

    folders: tuple[Folder, ...]
    num_samples: int
    part: float


class Loader:
    """Batches of one rank.

    Attributes:
        images_per_micro_batch: Images of each modality in a micro-batch of one rank, in the model's order.
        images_per_step: Images of each modality that all ranks together see in a step.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        modalities: tuple[str, ...],
        image_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        split: Split = "train",
        augment: bool = True,
    ) -> None:
        """Opens the shards.

        Args:
            config: Which shards, and how.
            modalities: Keys in the model's order.
            image_size: Height and width of the images, pixels.
            seed: Fixes order, crops and the images' keys.
            rank: This process among those that read different samples.
            world: Number of these processes.
            accumulation: Micro-batches of a step.
            split: Which tiles.
            augment: Random crop and flip; else the whole tile, resized where its size differs.

        Raises:
            ConfigError: Settings contradict each other.
            ShardError: Shards are missing, damaged, or lack a modality.
        """
        if not config.shards:
            raise ConfigError("no shards are given: name folders made by `ringmoe shards build` (--data.shards)")
        self._config = config
        self._image_size = image_size
        self._seed = seed
        self._rank, self._world, self._accumulation = rank, world, accumulation
        self._augment = augment
        self._manifests = [Manifest.open(place, config.remote) for place in config.shards]
        self._readers = {key: TileReader(self._manifests, key, split, verify=config.verify) for key in modalities}
        self.images_per_micro_batch = config.split_images(config.micro_batch, self.num_samples)
        self.images_per_step = {key: n * world * accumulation for key, n in self.images_per_micro_batch.items()}
        self._set_shares = {
            key: config.share_sets(
                BLOCK, {number: sum(sizes) for number, sizes in reader.sets.items()}, len(self._manifests)
            )
            for key, reader in self._readers.items()
        }
        self._orders = {key: self._order(key) for key in modalities}
        self._located = lru_cache(maxsize=2 * len(modalities))(self._locate_chunk)
        self._normalisers = {key: Normaliser(reader.statistics) for key, reader in self._readers.items()}

    @property
    def statistics(self) -> dict[str, InputStatistics]:
        """The input contract of each modality, for checkpoints."""
        return {key: reader.statistics for key, reader in self._readers.items()}

    @property
    def num_samples(self) -> dict[str, int]:
        """Tiles of each modality in the split."""
        return {key: reader.num_samples for key, reader in self._readers.items()}

    @property
    def num_steps_per_epoch(self) -> int:
        """Steps until every sample of every modality has been seen; smaller sets begin again meanwhile."""
        return max(-(-order.epoch_length // self.images_per_step[key]) for key, order in self._orders.items())

    @property
    def mixture(self) -> dict[str, tuple[Share, ...]]:
        """What the images of each modality are made up of: one share where all tiles are alike, else one a folder."""
        return {key: tuple(self._shares(key)) for key in self._readers}

    def batch(self, step: int, micro: int) -> Batch:
        """One micro-batch of this rank.

        Args:
            step: Optimiser step, from 0.
            micro: Which of the step's micro-batches.
        """
        images = {}
        for key, num_images in self.images_per_micro_batch.items():
            positions_B = micro_batch_positions(
                step,
                micro,
                images=num_images,
                rank=self._rank,
                world=self._world,
                accumulation=self._accumulation,
            )
            images[key] = self._substituted(key, *self._locate(key, positions_B))
        return Batch(images)

    def iterate(self, start_step: int = 0) -> Generator[list[Batch], None, None]:
        """The micro-batches of step after step, made ahead in a thread that ends with the iterator (``close()``)."""
        with Prefetch(self._step, first=start_step, depth=self._config.prefetch) as steps:
            while True:
                yield steps.next()

    def sequential(self, batch_size: int, *, at_most: int | None = None) -> Iterator[Batch]:
        """Samples of the split, each once, modality after modality; the ranks share them.

        A batch holds images of one modality. Every rank gets the same number of batches (see ``order.even_share``).
        Tiles that are not what was written are left out, see ``ModalityImages.bad``.

        Args:
            batch_size: Most images in a batch.
            at_most: So many samples of each modality, spread evenly over all of them; None for every one.
        """
        for key, reader in self._readers.items():
            num_samples = reader.num_samples if at_most is None else min(reader.num_samples, at_most)
            for share in even_share(num_samples, batch_size=batch_size, rank=self._rank, world=self._world):
                samples_B = torch.arange(share.start, share.stop) * reader.num_samples // num_samples
                yield Batch({key: self._without_bad(key, samples_B)})

    def num_met(self, step: int) -> dict[str, int]:
        """Tiles of each modality whose turn has come before a step, each counted once."""
        return {key: self._orders[key].num_met(step * images) for key, images in self.images_per_step.items()}

    def turns(self, key: str, steps: range) -> tuple[Tensor, Tensor]:
        """Whose turn it is in some steps on all ranks together: epoch and number of each sample, (N,) int64."""
        images = self.images_per_step[key]
        return self._orders[key].locate(torch.arange(steps.start * images, steps.stop * images))

    def names(self, key: str, samples_N: Tensor) -> list[str]:
        """What samples of a modality are called."""
        return [self._readers[key].name(sample) for sample in samples_N.tolist()]

    def state(self, step: int) -> dict[str, Any]:
        """What a continued run must find unchanged, and where it goes on."""
        return {
            "step": step,
            "seed": self._seed,
            "images_per_step": self.images_per_step,
            "shuffle_window": self._config.shuffle_window,
            "set_shares": {key: list(shares.values()) if shares else None for key, shares in self._set_shares.items()},
            "shards": [manifest.fingerprint for manifest in self._manifests],
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Checks that this loader goes on exactly where the one that gave ``state`` stopped.

        Raises:
            ShardError: It would read other samples; the message names both sides.
        """
        mine = self.state(state["step"])
        for name, value in mine.items():
            if state.get(name) != value:
                folders = ", ".join(map(str, self._config.shards))
                raise ShardError(
                    f"the run was begun with {name} = {state.get(name)}, but now (shards {folders}) it is {value}: it "
                    "would not go on where it stopped. Use the same shards and settings, or begin a new run"
                )

    def close(self) -> None:
        """Closes the shards; iterators must be closed before."""
        for reader in self._readers.values():
            reader.close()

    def _order(self, key: str) -> SampleOrder | MixedOrder:
        """The order of a modality: of the tiles of all folders together, or of each folder's with its share."""
        seed, window, shares = counter.key(self._seed, "order", key), self._config.shuffle_window, self._set_shares[key]
        if shares is None:
            return SampleOrder(self._readers[key].shard_sizes, seed=seed, window=window)
        sets = self._readers[key].sets
        orders = [
            SampleOrder(sizes, seed=counter.key(seed, "set", number), window=window) for number, sizes in sets.items()
        ]
        return MixedOrder(orders, [shares[number] for number in sets], seed=seed)

    def _shares(self, key: str) -> Iterator[Share]:
        reader, shares, roots = self._readers[key], self._set_shares[key], [each.folder for each in self._manifests]
        if shares is None:
            yield Share(tuple(roots[number] for number in reader.sets), reader.num_samples, 1.0)
            return
        for number, sizes in reader.sets.items():
            yield Share((roots[number],), sum(sizes), shares[number] / BLOCK)

    def _locate(self, key: str, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """What stands at positions that lie behind each other: epoch and number of each sample, (B,) int64."""
        chunks = range(int(positions_B[0]) // _CHUNK, int(positions_B[-1]) // _CHUNK + 1)
        epochs, samples = zip(*(self._located(key, chunk) for chunk in chunks), strict=True)
        places_B = positions_B - chunks.start * _CHUNK
        return torch.cat(epochs)[places_B], torch.cat(samples)[places_B]

    def _locate_chunk(self, key: str, chunk: int) -> tuple[Tensor, Tensor]:
        return self._orders[key].locate(torch.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK))

    def _step(self, step: int) -> list[Batch]:
        return [self.batch(step, micro) for micro in range(self._accumulation)]

    def _substituted(self, key: str, epochs_B: Tensor, samples_B: Tensor) -> ModalityImages:
        """Images of one modality, others in place of those that cannot be read."""
        keys_B = self._keys(key, epochs_B, samples_B)
        try:
            return self._images(key, keys_B, samples_B)
        except TileError:
            if not self._config.bad_tiles:
                raise
        chosen_B, bad = substituted(self._readers[key], samples_B.numpy(), keys_B)
        return replace(self._images(key, keys_B, torch.from_numpy(chosen_B)), bad=bad)

    def _without_bad(self, key: str, samples_B: Tensor) -> ModalityImages:
        """Images of one modality without those that cannot be read."""
        keys_B = self._keys(key, torch.zeros_like(samples_B), samples_B)
        try:
            return self._images(key, keys_B, samples_B)
        except TileError:
            if not self._config.bad_tiles:
                raise
        bad = dict(find_bad(self._readers[key], samples_B.numpy()))
        good = [place for place in range(len(samples_B)) if place not in bad]
        return replace(self._images(key, keys_B[good], samples_B[good]), bad=tuple(bad.values()))

    def _images(self, key: str, keys_B: Tensor, samples_B: Tensor) -> ModalityImages:
        """Reads, normalises and crops images of one modality."""
        reader = self._readers[key]
        blocks, names = reader.read(samples_B.numpy())
        shape = (len(samples_B), reader.statistics.spec.num_channels, self._image_size, self._image_size)
        pixels_BCSS = torch.empty(shape)
        present_BC = torch.empty(shape[:2], dtype=torch.bool)
        for block in blocks:
            places_B, groups_B = torch.from_numpy(block.places_B), torch.from_numpy(block.groups_B)
            tiles_BCHW = self._normalisers[key](block.pixels_BCHW, groups_B)
            pixels_BCSS[places_B] = self._crop(key, tiles_BCHW, keys_B[places_B])
            present_BC[places_B] = self._normalisers[key].present(groups_B)
        return ModalityImages(pixels_BCSS, present_BC, keys_B, names)

    def _keys(self, key: str, epochs_B: Tensor, samples_B: Tensor) -> Tensor:
        """The random key of each image: a function of seed, modality, epoch and sample."""
        epochs, numbers_B = torch.unique(epochs_B, return_inverse=True)
        bases = torch.tensor(
            [counter.key(self._seed, "image", key, epoch) for epoch in epochs.tolist()], dtype=torch.int64
        )
        return counter.mix(bases[numbers_B], samples_B)

    def _crop(self, key: str, tiles_BCHW: Tensor, keys_B: Tensor) -> Tensor:
        """Images of the wanted size from normalised tiles, changed at random in training."""
        side = tiles_BCHW.shape[-1]
        if not self._augment and side == self._image_size:
            return tiles_BCHW
        crops = random_crops(keys_B, side, self._config.crop) if self._augment else whole_tiles(len(keys_B), side)
        is_complex = self._readers[key].statistics.spec.is_complex
        images_BCSS = resample(tiles_BCHW, crops, self._image_size, "nearest" if is_complex else "triangle")
        turned = is_complex and self._augment and self._config.random_phase
        return turn_phase(images_BCSS, keys_B) if turned else images_BCSS
