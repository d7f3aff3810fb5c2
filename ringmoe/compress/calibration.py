"""Calibration: tiles of shards, given to a checkpoint's model as training would, and what is measured on them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ringmoe.batch import Batch
from ringmoe.checkpoint.pretrained import load_weights
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress.apply import source_config
from ringmoe.compress.memory import require_memory
from ringmoe.compress.usage import measure
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.usage import Usage
from ringmoe.train.contract import check_inputs

_TILES_AT_ONCE = 8  # of each modality


class Tiles:
    """Training tiles of some modalities, whole, in an order that is random and always the same.

    Attributes:
        config: The sub-model of these modalities.
        num_tiles: Tiles of each modality that are used.
        source: What they are, in words.
    """

    def __init__(self, config: RingMoEConfig, loader: Loader, num_tiles: int, folders: str) -> None:
        self.config = config
        self.num_tiles = min(num_tiles, max(loader.num_samples.values()))
        self.source = f"{self.num_tiles} tiles of each modality of {folders}"
        self._loader = loader
        self._per_batch = min(loader.images_per_micro_batch.values())

    def batches(self, progress: Callable[[int], None] | None = None) -> Iterator[Batch]:
        """The tiles, once; ``progress`` is called with the number of tiles after each batch."""
        for step in range(-(-self.num_tiles // self._per_batch)):
            batch = self._loader.batch(step, 0)
            yield batch
            if progress is not None:
                progress(batch.num_images)

    def steps(self, num: int) -> Iterator[Batch]:
        """So many batches of all training tiles, beginning again when all were seen."""
        for step in range(num):
            yield self._loader.batch(step, 0)


@contextmanager
def open_tiles(
    reader: CheckpointReader,
    shards: Sequence[Location],
    *,
    remote: RemoteConfig | None = None,
    modalities: Sequence[str] = (),
    num_tiles: int,
) -> Iterator[Tiles]:
    """Opens shards for a checkpoint.

    Args:
        reader: The checkpoint.
        shards: Folders made by ``ringmoe shards build``, or their URLs.
        remote: How URLs are read.
        modalities: What to calibrate for; empty is all that the model understands.
        num_tiles: Most tiles of each modality.

    Raises:
        ConfigError: The model does not have such a modality, or no tiles are asked for.
        ShardError: The shards lack a modality, or their inputs are not those that the model was trained on.
    """
    if num_tiles < 1:
        raise ConfigError(f"calibration on {num_tiles} tiles; expected at least 1 of each modality")
    source = source_config(reader)
    config = source.for_modalities(modalities or source.modalities)
    keys = config.modalities
    micro_batch = min(_TILES_AT_ONCE, num_tiles) * len(keys)
    data = DataConfig(shards=tuple(shards), remote=remote or RemoteConfig(), micro_batch=micro_batch, bad_tiles=0)
    loader = Loader(data, modalities=keys, image_size=config.image_size, seed=0, augment=False)
    try:
        folders = ", ".join(map(str, shards))
        check_inputs(reader.config, loader, ours=f"checkpoint {reader.path}", theirs=f"shards {folders}")
        yield Tiles(config, loader, num_tiles, folders)
    finally:
        loader.close()


def load_whole(config: RingMoEConfig, reader: CheckpointReader) -> RingMoE:
    """The model of a config with all its weights in memory.

    Raises:
        CheckpointError: The checkpoint is damaged or lacks some of them.
    """
    model = RingMoE(config)
    missing = load_weights(model, reader, strict=False).missing
    if missing:
        raise CheckpointError(f"{reader.path} lacks {len(missing)} of its tensors, the first is {missing[0]}")
    return model


def calibrate(
    reader: CheckpointReader,
    shards: Sequence[Location],
    *,
    remote: RemoteConfig | None = None,
    modalities: Sequence[str] = (),
    num_tiles: int,
    progress: Callable[[int], None] | None = None,
) -> Usage:
    """Sends training tiles through a checkpoint's model and counts which experts they select.

    See ``open_tiles`` for the arguments and errors; ``progress`` is called with the number of tiles after each batch.

    Raises:
        ConfigError: Memory is short, too.
    """
    with open_tiles(reader, shards, remote=remote, modalities=modalities, num_tiles=num_tiles) as tiles:
        require_memory("measuring usage", 4 * tiles.config.num_params())
        model = load_whole(tiles.config, reader)
        return measure(model, tiles.batches(progress), source=tiles.source)
