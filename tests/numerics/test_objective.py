"""Equations 4 to 7 against references that loop over pixels and experts in float64."""

from dataclasses import replace

import pytest
import torch

from ringmoe import modality
from ringmoe.batch import Routing
from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.models.ringmoe.objective import Reconstruction, balance, masked_error, normalise_locally, target
from ringmoe.testing.batches import random_batch

CONFIG = RingMoEConfig(
    image_size=32,
    depths=(1, 1),
    dims=(16, 32),
    head_dim=8,
    window=4,
    mask_unit=8,
    num_specialised=2,
    balance_weight=0.3,
)


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _present(*rows):
    return torch.tensor(rows, dtype=torch.bool)


@pytest.mark.parametrize("key", ["opt", "ms", "sar_l2"])
def test_eq5_pixels_are_their_own_target(key):
    pixels = _normal(2, modality.get(key).num_channels, 4, 4)
    present = torch.ones(pixels.shape[:2], dtype=torch.bool)
    found, found_present = target(pixels, present, modality.get(key))
    assert torch.equal(found, pixels)
    assert torch.equal(found_present, present)


def test_eq5_power_is_summed_over_present_polarisations():
    pixels = _normal(2, 8, 3, 3)
    present = _present([1] * 8, [1, 1, 0, 0, 0, 0, 1, 1])
    found, found_present = target(pixels, present, modality.get("sar_l1"))
    assert torch.equal(found_present, _present([1], [1]))
    for image, bands in enumerate(([0, 1, 2, 3], [0, 3])):
        for row in range(3):
            for col in range(3):
                values = pixels[image, :, row, col].double()
                power = sum(abs(complex(values[2 * band], values[2 * band + 1])) ** 2 for band in bands)
                assert found[image, 0, row, col].item() == pytest.approx(power, rel=1e-6)


def _error_reference(images, kind):
    """One term of Eq. 6: the mean over Omega(M) elements, one by one."""
    total, num = 0.0, 0
    prediction, wanted = images.prediction_BTHW.double(), images.target_BTHW.double()
    for image, channel, row, col in torch.cartesian_prod(*(torch.arange(size) for size in prediction.shape)).tolist():
        if images.mask_BHW[image, row, col] and images.present_BT[image, channel]:
            difference = (prediction - wanted)[image, channel, row, col].item()
            total, num = total + (difference**2 if kind == "l2" else abs(difference)), num + 1
    return total / num


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_eq6_error_is_the_mean_over_masked_pixels_of_present_channels(kind):
    images = Reconstruction(
        _normal(2, 3, 6, 6), _normal(2, 3, 6, 6, seed=1), _normal(2, 6, 6, seed=2) > 0, _present([1, 1, 0], [1, 1, 1])
    )
    assert masked_error(images, kind).item() == pytest.approx(_error_reference(images, kind), rel=1e-6)


def test_eq4_balance_is_summed_over_families_and_averaged_over_layers():
    num_specialised, tokens_M = 2, torch.tensor([6.0, 10.0])
    routings = [
        Routing((_normal(2, 5, seed=layer).abs() * 4).round(), _normal(2, 5, seed=9 + layer).abs(), tokens_M)
        for layer in range(3)
    ]
    collaborative, specialised = 0.0, [0.0, 0.0]
    for counts, probs, tokens in ((r.counts_ME.double(), r.probs_ME.double(), r.tokens_M.double()) for r in routings):
        for expert in range(2, 5):
            share, mean = counts[:, expert].sum() / tokens.sum(), probs[:, expert].sum() / tokens.sum()
            collaborative += (3 * share * mean).item() / 3
        for m in range(2):
            for expert in range(2):
                share, mean = counts[m, expert] / tokens[m], probs[m, expert] / tokens[m]
                specialised[m] += (2 * share * mean).item() / 3
    found_collaborative, found_specialised_M = balance(routings, num_specialised)
    assert found_collaborative.item() == pytest.approx(collaborative, rel=1e-6)
    assert found_specialised_M.tolist() == pytest.approx(specialised, rel=1e-6)


@pytest.mark.parametrize("changes", [{}, {"loss": "l1"}, {"target_norm_window": 7}])
def test_eq6_and_eq7_the_loss_of_the_model_adds_up(changes):
    config = replace(CONFIG, **changes)
    model = RingMoE(config)
    initialise(model, 0)
    batch = random_batch(config.modalities, 2, 32)
    output, images = model(batch), model.reconstruct(batch)
    errors = [_error_reference(images[key], config.loss) for key in config.modalities]
    assert output.recon_M.tolist() == pytest.approx(errors, rel=1e-5)
    l_balance = output.balance_collaborative.double() + output.balance_specialised_M.double().sum()
    assert output.loss.item() == pytest.approx(sum(errors) + 0.3 * l_balance.item(), rel=1e-5)


def test_the_target_of_the_model_is_eq5_of_what_the_encoder_sees():
    model = RingMoE(CONFIG)
    initialise(model, 0)
    batch = random_batch(CONFIG.modalities, 2, 32)
    for key, images in model.reconstruct(batch).items():
        of_key = batch.images[key]
        assert torch.equal(images.target_BTHW, target(of_key.pixels_BCHW, of_key.present_BC, modality.get(key))[0])


def test_local_normalisation_against_windows_cut_out_one_by_one():
    pixels, window = _normal(1, 2, 9, 8) * 3 + 5, 5
    found = normalise_locally(pixels, window)
    for channel, row, col in ((0, 0, 0), (1, 4, 4), (0, 8, 3), (1, 2, 7)):
        top, left = max(0, row - 2), max(0, col - 2)
        cut = pixels[0, channel, top : row + 3, left : col + 3].double()
        expected = (pixels[0, channel, row, col].double() - cut.mean()) / (cut.var(unbiased=True) + 1e-6).sqrt()
        assert found[0, channel, row, col].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    assert torch.isfinite(normalise_locally(torch.full((1, 1, 8, 8), 3.7), window)).all()
