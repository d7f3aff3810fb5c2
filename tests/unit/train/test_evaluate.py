"""Held-out error against a slow reference, and that it does not depend on batches or ranks."""

from contextlib import closing

import numpy as np
import pytest
import torch

from ringmoe.data.loader import DataConfig
from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.models.ringmoe.objective import Reconstruction
from ringmoe.train.evaluate import evaluate, evaluating, tile_errors
from ringmoe.train.loaders import whole_tiles_loader

CPU = torch.device("cpu")
SMALL = RingMoEConfig(image_size=32, depths=(1, 1), dims=(16, 32), head_dim=8, window=4, mask_unit=8)


def test_errors_of_a_tile_are_those_of_a_slow_reference():
    generator = np.random.default_rng(0)
    target, prediction = generator.normal(size=(2, 3, 4, 8, 8)).astype(np.float32)
    mask = generator.random((3, 8, 8)) < 0.6
    present = np.array([[True] * 4, [True, False, True, True], [False, False, True, False]])
    found = tile_errors(Reconstruction(*map(torch.from_numpy, (prediction, target, mask, present))))
    for b in range(3):
        model, baseline = [], []
        for c in np.flatnonzero(present[b]):
            truth = target[b, c].astype(np.float64)
            model += list((prediction[b, c] - truth)[mask[b]] ** 2)
            baseline += list((truth[~mask[b]].mean() - truth)[mask[b]] ** 2)
        assert found[0][b].item() == pytest.approx(np.mean(model), rel=1e-5)
        assert found[1][b].item() == pytest.approx(np.mean(baseline), rel=1e-5)


@pytest.fixture
def model():
    model = RingMoE(SMALL)
    initialise(model, 0)
    return model


def test_the_result_does_not_depend_on_the_size_of_batches(model, shards):
    with closing(whole_tiles_loader(DataConfig(shards=(shards,)), SMALL)) as loader:
        one, other = (evaluate(model, loader, device=CPU, masks=2, batch=size, tiles=512) for size in (1, 4))
        assert {key: result.num_tiles for key, result in one.items()} == loader.num_samples
    for key, result in one.items():
        assert result.model == pytest.approx(other[key].model, rel=1e-5)
        assert result.baseline == pytest.approx(other[key].baseline, rel=1e-5)
        assert result.ratio == pytest.approx(result.model / result.baseline)


def test_fewer_tiles_can_be_asked_for(model, shards):
    with closing(whole_tiles_loader(DataConfig(shards=(shards,)), SMALL)) as loader:
        results = evaluate(model, loader, device=CPU, masks=1, batch=2, tiles=3)
    assert {result.num_tiles for result in results.values()} == {3}


def test_evaluation_leaves_training_as_it_was(model):
    model.train()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
    assert torch.is_grad_enabled()
