"""The two loaders of a run: tiles to train on, cropped at random, and whole tiles to judge by."""

from ringmoe.data.layout import Split
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.models import ModelConfig
from ringmoe.train.run import RunConfig

MASK_SEED = 0  # of tiles to judge by: the same masks in every run, so that runs can be compared


def train_loader(config: RunConfig, *, rank: int, world: int) -> Loader:
    """Batches of one rank, cropped and flipped at random.

    Raises:
        ConfigError: See ``Loader``.
        ShardError: See ``Loader``.
    """
    return Loader(
        config.data,
        modalities=config.model.modalities,
        image_size=config.model.image_size,
        seed=config.seed,
        rank=rank,
        world=world,
        accumulation=config.batch.accumulation,
    )


def whole_tiles_loader(
    data: DataConfig, model: ModelConfig, *, split: Split = "val", rank: int = 0, world: int = 1
) -> Loader:
    """The share of one rank in the tiles of a split, the held-out ones if none is named, whole and as they are.

    Raises:
        ConfigError: See ``Loader``.
        ShardError: See ``Loader``.
    """
    return Loader(
        data,
        modalities=model.modalities,
        image_size=model.image_size,
        seed=MASK_SEED,
        rank=rank,
        world=world,
        split=split,
        augment=False,
    )
