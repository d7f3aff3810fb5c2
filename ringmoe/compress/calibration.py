"""Calibration: usage statistics of a checkpoint, measured on tiles of shards."""

from collections.abc import Callable, Iterator, Sequence

from ringmoe.batch import Batch
from ringmoe.checkpoint.pretrained import load_weights
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress.apply import source_config
from ringmoe.compress.usage import measure
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.usage import Usage
from ringmoe.train.contract import check_inputs

_TILES_AT_ONCE = 8  # of each modality


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

    Args:
        reader: The checkpoint.
        shards: Folders made by ``ringmoe shards build``, or their URLs.
        remote: How URLs are read.
        modalities: What to calibrate for; empty is all that the model understands.
        num_tiles: Most tiles of each modality, taken in an order that is random and always the same.
        progress: Called with the number of tiles after each batch.

    Raises:
        ConfigError: The model does not have such a modality, or no tiles are asked for.
        ShardError: The shards lack a modality, or their inputs are not those that the model was trained on.
        CheckpointError: The checkpoint is damaged.
    """
    if num_tiles < 1:
        raise ConfigError(f"calibration on {num_tiles} tiles; expected at least 1 of each modality")
    source = source_config(reader)
    config = source.for_modalities(modalities or source.modalities)
    model = RingMoE(config)
    missing = load_weights(model, reader, strict=False).missing
    if missing:
        raise CheckpointError(f"{reader.path} lacks {len(missing)} of its tensors, the first is {missing[0]}")
    keys = config.modalities
    micro_batch = min(_TILES_AT_ONCE, num_tiles) * len(keys)
    data = DataConfig(shards=tuple(shards), remote=remote or RemoteConfig(), micro_batch=micro_batch, bad_tiles=0)
    loader = Loader(data, modalities=keys, image_size=config.image_size, seed=0, augment=False)
    try:
        folders = ", ".join(map(str, shards))
        check_inputs(reader.config, loader, ours=f"checkpoint {reader.path}", theirs=f"shards {folders}")
        num_tiles = min(num_tiles, max(loader.num_samples.values()))
        source_text = f"{num_tiles} tiles of each modality of {folders}"
        return measure(model, _batches(loader, num_tiles, progress), source=source_text)
    finally:
        loader.close()


def _batches(loader: Loader, num_tiles: int, progress: Callable[[int], None] | None) -> Iterator[Batch]:
    per_batch = min(loader.images_per_micro_batch.values())
    for step in range(-(-num_tiles // per_batch)):
        batch = loader.batch(step, 0)
        yield batch
        if progress is not None:
            progress(batch.num_images)
