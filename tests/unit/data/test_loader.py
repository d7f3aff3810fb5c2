import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from ringmoe.data import read
from ringmoe.data.build import build
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.manifest import Manifest
from ringmoe.data.plan import BuildConfig
from ringmoe.errors import ConfigError, ShardError
from ringmoe.raster.tiling import TilingConfig

from .conftest import write_scene

FOUR = ("opt", "ms", "sar_l1", "sar_l2")


def _loader(root, **options):
    config = options.pop("config", DataConfig(shards=(root,), micro_batch=6, shuffle_window=2))
    defaults = {"modalities": FOUR, "image_size": 16, "seed": 5}
    return Loader(config, **(defaults | options))


def _equal(first, second):
    return list(first.images) == list(second.images) and all(
        a.pixels_BCHW.equal(b.pixels_BCHW)
        and a.present_BC.equal(b.present_BC)
        and a.keys_B.equal(b.keys_B)
        and list(a.sample_ids) == list(b.sample_ids)
        for a, b in zip(first.images.values(), second.images.values(), strict=True)
    )


def test_a_batch_is_what_the_model_expects(shards):
    batch = _loader(shards.root).batch(0, 0)
    assert list(batch.images) == list(FOUR)
    for (key, images), num_images, num_channels in zip(batch.images.items(), (2, 2, 1, 1), (3, 4, 8, 1), strict=True):
        assert images.pixels_BCHW.shape == (num_images, num_channels, 16, 16)
        assert images.pixels_BCHW.dtype == torch.float32
        assert images.pixels_BCHW.isfinite().all()
        assert images.present_BC.all()
        assert images.keys_B.dtype == torch.int64
        assert len(set(images.keys_B.tolist())) == len(set(images.sample_ids)) == num_images
        assert all(name.startswith(f"shards/{key}/train-") for name in images.sample_ids)


def test_names_are_made_up_only_when_they_are_asked_for(shards, monkeypatch):
    asked = []
    monkeypatch.setattr(read, "member_key", lambda *place: asked.append(place) or "key")
    images = _loader(shards.root).batch(0, 0).images["opt"]
    assert len(images.sample_ids) == 2
    assert not asked
    assert images.to(torch.device("cpu")).sample_ids[0].endswith("key")
    assert len(asked) == 1


def test_values_are_normalised_over_the_set(shards):
    loader = _loader(shards.root, augment=False)
    for batch in loader.sequential(7):
        ((key, images),) = batch.images.items()
        if key != "sar_l1":
            assert abs(images.pixels_BCHW.mean()) < 0.2
            assert abs(images.pixels_BCHW.std() - 1) < 0.1
        else:
            assert abs(images.pixels_BCHW.square().sum(1).std() - 1) < 0.1  # of the power


def test_batches_are_a_pure_function_of_the_step(shards):
    loader, other = _loader(shards.root, accumulation=2), _loader(shards.root, accumulation=2)
    ahead = loader.iterate(3)
    for step in range(3, 6):
        assert all(_equal(batch, other.batch(step, micro)) for micro, batch in enumerate(next(ahead)))
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert not _equal(loader.batch(3, 0), loader.batch(3, 1))
    assert not _equal(loader.batch(3, 0), _loader(shards.root, accumulation=2, seed=6).batch(3, 0))


@pytest.mark.parametrize(("world", "accumulation", "micro_batch"), [(2, 1, 12), (4, 1, 6), (1, 4, 6), (2, 2, 6)])
def test_the_global_batch_does_not_depend_on_the_ranks(shards, world, accumulation, micro_batch):
    """Sample, crop and key of every image are the same however the batch is shared out."""
    weights = {"opt": 3.0, "ms": 1.0, "sar_l1": 1.0, "sar_l2": 1.0}

    def images(world, accumulation, micro_batch):
        config = DataConfig(shards=(shards.root,), micro_batch=micro_batch, weights=weights, shuffle_window=2)
        found = {}
        for rank in range(world):
            loader = _loader(shards.root, config=config, rank=rank, world=world, accumulation=accumulation)
            for micro in range(accumulation):
                for key, part in loader.batch(2, micro).images.items():
                    for i, name in enumerate(part.sample_ids):
                        found[key, name, int(part.keys_B[i])] = part.pixels_BCHW[i].sum().item()
        return found

    assert images(world, accumulation, micro_batch) == images(1, 1, 24)


def test_each_epoch_crops_and_masks_differently(shards):
    config = DataConfig(shards=(shards.root,), micro_batch=160, shuffle_window=2)
    first, second = (_loader(shards.root, config=config).batch(step, 0).images["ms"] for step in (0, 1))
    assert sorted(first.sample_ids) == sorted(second.sample_ids)
    assert not set(first.keys_B.tolist()) & set(second.keys_B.tolist())
    place = second.sample_ids.index(first.sample_ids[0])
    assert not first.pixels_BCHW[0].equal(second.pixels_BCHW[place])


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_held_out_tile_once(shards, world):
    parts = [
        list(_loader(shards.root, split="val", augment=False, rank=r, world=world).sequential(5)) for r in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    seen = [name for part in parts for batch in part for images in batch.images.values() for name in images.sample_ids]
    assert len(seen) == len(set(seen)) == 16 + 8 + 8 + 8
    assert all("/val-" in name for name in seen)
    few = [
        _loader(shards.root, split="val", augment=False, rank=r, world=world).sequential(5, at_most=6)
        for r in range(world)
    ]
    names = [name for part in few for batch in part for images in batch.images.values() for name in images.sample_ids]
    assert len(names) == len(set(names)) == 24


def test_evaluation_shows_the_whole_tile(shards):
    whole = _loader(shards.root, split="val", augment=False)
    index = shards.open_index("opt", "val")[0]
    shard = shards.root / shards.modalities["opt"].splits["val"].shards[0].name
    with shard.open("rb") as file:
        file.seek(int(index["offset"]))
        stored = np.frombuffer(file.read(int(index["length"])), dtype=np.uint8).reshape(3, 16, 16).astype(np.float64)
    image = next(whole.sequential(1)).images["opt"].pixels_BCHW[0]
    for channel, statistics in zip(range(3), whole.statistics["opt"].groups[0].channels, strict=True):
        low, high = statistics.percentiles[0], statistics.percentiles[-1]
        expected = (stored[channel].clip(low, high) - statistics.mean) / statistics.std
        np.testing.assert_allclose(image[channel].numpy(), expected, atol=1e-5)
    small = (
        next(_loader(shards.root, split="val", augment=False, image_size=8).sequential(1)).images["opt"].pixels_BCHW[0]
    )
    assert small.shape == (3, 8, 8)
    assert abs(small.mean() - image.mean()) < 0.05


def test_tiles_of_other_sizes_are_mixed(tmp_path, shards):
    write_scene(tmp_path / "in/x.tif", "sar_l1", sensor="other")
    other = build([tmp_path / "in"], tmp_path / "out", BuildConfig(tiling=TilingConfig(tile=24, stride=24))).manifest
    config = DataConfig(shards=(shards.root, other.root), micro_batch=200)
    loader = _loader(shards.root, config=config)
    images = loader.batch(0, 0).images["sar_l1"]
    assert images.pixels_BCHW.shape == (50, 8, 16, 16)
    folders = Counter(name.split("/")[0] for name in images.sample_ids)
    assert folders.keys() == {"shards", "out"}
    assert [group.sensor for group in loader.statistics["sar_l1"].groups] == ["sensor of sar_l1", "other"]


def test_errors_of_reading_reach_the_consumer(own_shards):
    root = own_shards()
    loader = _loader(root)
    ahead = loader.iterate()
    next(ahead)
    for path in root.glob("sar_l2/train-*.tar"):
        with path.open("r+b") as file:
            file.truncate(1000)
    with pytest.raises(ShardError, match="sar_l2/train"):
        list(ahead)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    loader.close()


def test_a_run_is_only_continued_on_the_same_samples(shards, own_shards):
    state = _loader(shards.root).state(7)
    _loader(own_shards()).check_state(state)  # a copy of the shards is the same
    for changed, name in (
        (_loader(shards.root, seed=6), "seed = 5.*it is 6"),
        (_loader(shards.root, world=2), r"images_per_step = \{'opt': 2.*it is \{'opt': 4"),
        (
            _loader(shards.root, config=DataConfig(shards=(shards.root,), micro_batch=6, shuffle_window=3)),
            "shuffle_window",
        ),
    ):
        with pytest.raises(ShardError, match=name):
            changed.check_state(state)
    root = own_shards("other")
    replace(Manifest.open(root), settings={}).save()
    with pytest.raises(ShardError, match=rf"shards = .*\(shards {root}\) it is"):
        _loader(root).check_state(state)


def test_wrong_settings_are_refused(shards):
    with pytest.raises(ConfigError, match="no shards are given"):
        _loader(shards.root, config=DataConfig())
    with pytest.raises(ConfigError, match=r"data\.prefetch must be at least 1; it is 0"):
        DataConfig(prefetch=0)
    with pytest.raises(ConfigError, match="at least 4"):
        _loader(shards.root, config=DataConfig(shards=(shards.root,), micro_batch=3))
    with pytest.raises(ShardError, match=r"modality 'hyper'.*holds opt, ms, sar_l1, sar_l2"):
        _loader(shards.root, modalities=("opt", "hyper"))
