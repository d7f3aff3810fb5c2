"""Each sample comes exactly once in each epoch of its data set, wherever a run stops and whoever goes on."""

import json
from collections import Counter, defaultdict
from itertools import islice

import pytest

from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.plan import BuildConfig
from ringmoe.errors import ShardError
from ringmoe.raster.tiling import TilingConfig

from .conftest import write_scene

FOUR = ("opt", "ms", "sar_l1", "sar_l2")
GLOBAL = {"opt": 48, "ms": 24, "sar_l1": 12, "sar_l2": 12}  # images of a step
# first step, last step, ranks, micro-batches of a step: a run that is stopped and goes on, each time on other machines
STRETCHES = ((0, 3, 1, 1), (3, 4, 4, 1), (4, 9, 2, 3), (9, 12, 3, 2))


@pytest.fixture(scope="module")
def folders(_shards, tmp_path_factory):
    """The shards of all modalities, and a smaller folder of two of them."""
    root = tmp_path_factory.mktemp("second")
    for number, key in enumerate(("opt", "sar_l2")):
        write_scene(root / "in" / f"{key}.tif", key, seed=20 + number, height=40, width=56)
    config = BuildConfig(tiling=TilingConfig(tile=16, stride=8), tiles_per_shard=10)
    return _shards, build([root / "in"], root / "second", config).manifest.root


def _stretch(options, start, stop, world, accumulation, state):
    """What a run reads between two steps, in the order of the stream, and its state; reading ahead is cut off."""
    images = {key: number // (world * accumulation) for key, number in GLOBAL.items()}
    config = DataConfig(
        micro_batch=sum(images.values()), quotas=images, shuffle_window=2, prefetch=accumulation, **options
    )
    loaders = [
        Loader(config, modalities=FOUR, image_size=8, seed=5, rank=rank, world=world, accumulation=accumulation)
        for rank in range(world)
    ]
    read = defaultdict(list)
    for loader in loaders:
        if state is not None:
            loader.check_state(state)
    ranks = [loader.iterate(start) for loader in loaders]
    for step in zip(*(islice(rank, stop - start) for rank in ranks), strict=True):
        for micro in range(accumulation):
            for batches in step:
                for key, part in batches[micro].images.items():
                    read[key] += zip(part.sample_ids, part.keys_B.tolist(), strict=True)
    for rank, loader in zip(ranks, loaders, strict=True):
        rank.close()
        loader.close()
    return read, json.loads(json.dumps(loaders[0].state(stop))), loaders[0].mixture


@pytest.mark.parametrize(
    "mixture",
    [{}, {"set_weights": (1.0, 2.0)}, {"set_temperature": 3.0}],
    ids=["pooled", "weights", "temperature"],
)
def test_each_sample_comes_once_in_every_epoch_of_its_set(folders, mixture):
    options = {"shards": folders, **mixture}
    whole, _, shares = _stretch(options, 0, STRETCHES[-1][1], 1, 1, None)
    read, state = defaultdict(list), None
    for stretch in STRETCHES:
        part, state, _ = _stretch(options, *stretch, state)
        for key, samples in part.items():
            read[key] += samples
    for key, parts in shares.items():
        # the same images in the same order with the same crops as in a run of one rank that nothing stopped
        assert read[key] == whole[key]
        assert len(read[key]) == STRETCHES[-1][1] * GLOBAL[key]
        for share in parts:
            names = {folder.name for folder in share.folders}
            mine = [name for name, _ in read[key] if name.split("/")[0] in names]
            epochs = [mine[first : first + share.num_samples] for first in range(0, len(mine), share.num_samples)]
            for epoch in epochs:
                assert Counter(epoch).most_common(1)[0][1] == 1
            assert all(set(epoch) == set(epochs[0]) for epoch in epochs[:-1])
        keys = [image_key for _, image_key in read[key]]
        assert len(set(keys)) == len(keys), "each epoch crops anew"


def test_a_set_keeps_its_share_and_its_own_epochs(folders):
    read, _, shares = _stretch({"shards": folders, "set_weights": (1.0, 3.0)}, 0, 24, 1, 1, None)
    first, second = shares["opt"]
    assert (first.part, second.part) == (0.25, 0.75)
    assert shares["ms"][0].part == 1.0  # which only one folder holds
    mine = [name for name, _ in read["opt"] if name.startswith(f"{second.folders[0].name}/")]
    assert len(mine) / len(read["opt"]) == pytest.approx(0.75, abs=0.03)
    assert min(Counter(mine).values()) >= len(mine) // second.num_samples > 10  # epochs of the small set


def test_another_mixture_is_no_continuation(folders):
    _, state, _ = _stretch({"shards": folders, "set_weights": (1.0, 2.0)}, 0, 1, 1, 1, None)
    with pytest.raises(ShardError, match="set_shares"):
        _stretch({"shards": folders, "set_weights": (1.0, 3.0)}, 1, 2, 1, 1, state)
    with pytest.raises(ShardError, match="set_shares"):
        _stretch({"shards": folders}, 1, 2, 1, 1, state)
