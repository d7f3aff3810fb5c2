"""Each sample comes exactly once in each epoch of its data set, wherever a run stops and whoever goes on."""

import json
import shutil
from collections import Counter, defaultdict
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch

from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.manifest import Manifest
from ringmoe.data.passed import Missed
from ringmoe.data.plan import BuildConfig
from ringmoe.errors import ShardError, TileError
from ringmoe.raster.tiling import TilingConfig
from tests.fixtures.corpus.damage import flip
from tests.fixtures.corpus.tiff import cut

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


@pytest.mark.parametrize("mixture", [{}, {"set_weights": (1.0, 2.0)}], ids=["pooled", "weights"])
def test_what_is_passed_over_is_missed_until_another_epoch_brings_it(folders, mixture):
    config = DataConfig(shards=folders, micro_batch=sum(GLOBAL.values()), quotas=GLOBAL, shuffle_window=2, **mixture)
    met, read, most = defaultdict(set), defaultdict(set), 0
    with closing(Loader(config, modalities=FOUR, image_size=8, seed=5)) as loader:
        missed = Missed(loader)
        for step in range(24):
            is_read = step not in (1, 2, 8)
            for key, images in loader.batch(step, 0).images.items():
                assert loader.names(key, loader.turns(key, range(step, step + 1))[1]) == list(images.sample_ids)
                met[key].update(images.sample_ids)
                read[key].update(images.sample_ids if is_read else ())
            if is_read:
                missed.read(range(step, step + 1))
            else:
                missed.pass_over(range(step, step + 1), {})
            assert missed.counts == {key: len(met[key] - read[key]) for key in FOUR}
            most = max(most, sum(missed.counts.values()))
        assert most > 0
        # at once, as a run that goes on finds it, and without a tile that counts as bad already
        again, bad = Missed(loader), loader.names("ms", loader.turns("ms", range(1, 2))[1])[:1]
        again.pass_over(range(1, 3), {"ms": bad})
        assert again.counts["ms"] == loader.num_met(3)["ms"] - loader.num_met(1)["ms"] - 1
        again.read(range(3, 24))
        assert not any(again.counts.values())


@pytest.fixture
def damaged(folders, tmp_path):
    """The same folders: of the first, a byte of one tile flipped, and one shard cut off."""
    roots = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    flip(roots[0] / "ms/train-000000.tar")
    cut(roots[0] / "opt/train-000001.tar", 0.7)
    bad = {"ms": 1, "opt": Manifest.open(roots[0]).modalities["opt"].splits["train"].shards[1].samples}
    return roots, bad


@pytest.mark.parametrize("mixture", [{}, {"set_weights": (1.0, 2.0)}], ids=["pooled", "weights"])
def test_bad_tiles_are_replaced_alike_on_any_ranks_and_all_others_come_as_before(folders, damaged, mixture):
    roots, num_bad = damaged
    options = {"shards": tuple(roots), "bad_tiles": 0.5, **mixture}
    sound, *_ = _stretch({"shards": folders, **mixture}, 0, STRETCHES[-1][1], 1, 1, None)
    whole, *_ = _stretch(options, 0, STRETCHES[-1][1], 1, 1, None)
    read, state = defaultdict(list), None
    for stretch in STRETCHES:
        part, state, _ = _stretch(options, *stretch, state)
        for key, samples in part.items():
            read[key] += samples
    assert read == whole
    for key, samples in read.items():
        changed = [(name, other) for (name, _), (other, _) in zip(sound[key], samples, strict=True) if name != other]
        assert len({name for name, _ in changed}) == num_bad.get(key, 0)
        assert not {name for name, _ in samples} & {name for name, _ in changed}, "no bad tile was ever read"
        assert [image_key for _, image_key in samples] == [image_key for _, image_key in sound[key]]
        assert all(name.split("/")[0] == other.split("/")[0] for name, other in changed), "of the same folder"


def test_what_is_met_read_and_bad_adds_up_at_every_step(folders, damaged):
    roots, num_bad = damaged
    config = DataConfig(shards=tuple(roots), micro_batch=24, set_weights=(1.0, 2.0), shuffle_window=2, bad_tiles=0.5)
    with closing(Loader(config, modalities=FOUR, image_size=8, seed=5)) as loader:
        read, bad, turns = defaultdict(set), defaultdict(set), Counter()
        for step in range(60):
            assert loader.num_met(step) == {key: len(read[key] | bad[key]) for key in FOUR}
            for key, images in loader.batch(step, 0).images.items():
                bad[key] |= {tile.name for tile in images.bad}
                turns[key] += len(images.sample_ids)
                _, samples = loader._locate(key, torch.arange(turns[key] - len(images.sample_ids), turns[key]))
                named = {loader._readers[key].name(sample) for sample in samples.tolist()}
                read[key] |= named - bad[key]
        assert {key: len(names) for key, names in bad.items() if names} == num_bad
        assert {key: len(read[key]) + len(bad[key]) for key in FOUR} == loader.num_samples


def test_held_out_tiles_that_are_bad_are_left_out_and_counted(damaged):
    roots, _ = damaged
    cut(roots[0] / "sar_l1/val-000000.tar", 0.9)
    config = DataConfig(shards=tuple(roots))
    with closing(Loader(config, modalities=("sar_l1",), image_size=16, seed=5, split="val", augment=False)) as loader:
        batches = [batch.images["sar_l1"] for batch in loader.sequential(3)]
        assert sum(len(images.bad) for images in batches) == loader.num_samples["sar_l1"] == 8
        assert sum(len(images.pixels_BCHW) for images in batches) == 0


def test_one_bad_tile_stops_whoever_tolerates_none_and_a_bad_folder_everybody(damaged):
    roots, _ = damaged
    strict = DataConfig(shards=tuple(roots), micro_batch=24, bad_tiles=0)
    with (
        closing(Loader(strict, modalities=FOUR, image_size=8, seed=5)) as loader,
        pytest.raises(TileError, match=r"(ms/train-000000.*wrong checksum|opt/train-000001\.tar has)"),
    ):
        list(islice(loader.iterate(), 60))
    for path in (roots[0] / "ms").glob("train-*.tar"):
        cut(path, 0.5)
    config = DataConfig(shards=tuple(roots), micro_batch=24, bad_tiles=0.5)
    with (
        closing(Loader(config, modalities=FOUR, image_size=8, seed=5)) as loader,
        pytest.raises(ShardError, match="none of 32 other tiles of its folder that were tried"),
    ):
        loader.batch(0, 0)
