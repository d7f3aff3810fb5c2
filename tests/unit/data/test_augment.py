import pytest
import torch
import torch.nn.functional as F

from ringmoe import counter
from ringmoe.data.augment import CropConfig, Crops, random_crops, resample, turn_phase, whole_tiles
from ringmoe.errors import ConfigError


def _keys(num):
    return counter.mix(torch.tensor(7), torch.arange(num))


def test_crops_lie_inside_and_cover_the_range_evenly():
    crops = random_crops(_keys(20_000), 192, CropConfig())
    assert (crops.top_B >= 0).all()
    assert (crops.left_B >= 0).all()
    assert (crops.top_B + crops.height_B <= 192).all()
    assert (crops.left_B + crops.width_B <= 192).all()
    area = crops.height_B * crops.width_B / 192**2
    assert 0.19 < area.min() < 0.21
    assert abs(area.mean() - 0.6) < 0.005
    assert abs((area < 0.4).float().mean() - 0.25) < 0.015
    aspect = crops.width_B / crops.height_B
    assert 0.73 < aspect.min() < 0.77
    assert 1.31 < aspect.max() < 1.37
    assert abs(aspect.log().mean()) < 0.01
    assert abs(crops.flip_B.float().mean() - 0.5) < 0.015
    # the corner is anywhere in the room that the crop leaves
    place = crops.top_B / (192 - crops.height_B).clamp(min=1)
    assert abs(place[crops.height_B < 150].mean() - 0.5) < 0.01


@pytest.mark.parametrize("wrong", [{"area": (0.5, 0.2)}, {"area": (0.0, 1.0)}, {"aspect": (1.2, 2.0)}, {"flip": 2.0}])
def test_impossible_crops_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CropConfig(**wrong)


def test_a_crop_is_a_function_of_its_key():
    keys = _keys(8)
    together = random_crops(keys, 96, CropConfig())
    for i in (0, 5):
        alone = random_crops(keys[i : i + 1], 96, CropConfig())
        assert all(part[0] == whole[i] for part, whole in zip(alone, together, strict=True))


def test_pixels_are_resampled_like_torch_does_it_one_by_one():
    pixels = torch.rand(12, 3, 40, 40)
    crops = random_crops(_keys(12), 40, CropConfig())
    assert crops.flip_B.any()
    assert not crops.flip_B.all()
    for size in (7, 20, 40, 56):
        found = resample(pixels, crops, size, "triangle")
        for i, (top, left, height, width, flip) in enumerate(zip(*map(torch.Tensor.tolist, crops), strict=True)):
            crop = pixels[i : i + 1, :, top : top + height, left : left + width]
            expected = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
            torch.testing.assert_close(found[i], expected.flip(-1) if flip else expected, rtol=0, atol=2e-5)


def test_an_image_does_not_depend_on_its_batch():
    """Crops of other scales need other numbers of pixels; those that an image does not need weigh nothing."""
    pixels = torch.rand(6, 2, 40, 40)
    crops = random_crops(_keys(6), 40, CropConfig())
    together = resample(pixels, crops, 12, "triangle")
    for i in range(6):
        alone = resample(pixels[i : i + 1], Crops(*(part[i : i + 1] for part in crops)), 12, "triangle")
        assert alone[0].equal(together[i])


def test_whole_tiles_of_the_right_size_are_unchanged():
    pixels = torch.randn(4, 8, 24, 24)
    for resampling in ("nearest", "triangle"):
        torch.testing.assert_close(resample(pixels, whole_tiles(4, 24), 24, resampling), pixels, rtol=0, atol=1e-6)


def _power_kept(pixels, keys, size, resampling="nearest"):
    """Mean power of the output over that of the crops, over many crops."""
    crops = random_crops(keys, pixels.shape[-1], CropConfig())
    output = resample(pixels, crops, size, resampling)
    boxes = torch.stack(crops[:4], dim=-1).tolist()
    before = [image[:, t : t + h, x : x + w].square().mean() for image, (t, x, h, w) in zip(pixels, boxes, strict=True)]
    return float(output.square().mean(dim=(1, 2, 3)).mean() / torch.stack(before).mean())


def test_complex_crops_keep_the_mean_power_of_speckle_and_of_targets():
    speckle = torch.randn(300, 8, 48, 48)
    target = torch.zeros(1, 2, 48, 48)
    target[:, :, 20:22, 30:32] = 5.0  # coherent: its power goes with the square of the sum of the weights
    for size in (32, 48, 64):
        assert abs(_power_kept(speckle, _keys(300), size) - 1) < 0.01
        assert abs(_power_kept(target.expand(3000, -1, -1, -1), _keys(3000), size) - 1) < 0.03
    assert _power_kept(speckle, _keys(300), 48, "triangle") < 0.6  # why interpolation will not do


def test_complex_pixels_stay_whole():
    """Each output pixel is one input pixel: I, Q and the polarisations belong together."""
    speckle = torch.randn(6, 8, 32, 32)
    output = resample(speckle, random_crops(_keys(6), 32, CropConfig()), 40, "nearest")
    for before, after in zip(speckle, output, strict=True):
        assert set(map(tuple, after.flatten(1).T.tolist())) <= set(map(tuple, before.flatten(1).T.tolist()))


def test_speckle_keeps_its_distribution():
    speckle = torch.randn(200, 2, 48, 48)
    output = resample(speckle, random_crops(_keys(200), 48, CropConfig()), 48, "nearest")
    power = output.square().sum(1)
    # single-look power is exponential: its standard deviation is its mean. Averaged pixels would have less
    assert abs(power.std() / power.mean() - 1) < 0.02
    by_row = power.mean(dim=(0, 2))
    assert by_row.std() / by_row.mean() < 0.03  # and no pattern of bright and dark rows


def test_a_random_phase_leaves_power_and_what_polarisations_are_to_each_other():
    pixels = torch.randn(6, 8, 12, 12)
    turned = turn_phase(pixels, _keys(6))
    before, after = (torch.complex(x[:, 0::2], x[:, 1::2]) for x in (pixels, turned))
    torch.testing.assert_close(after.abs(), before.abs())
    torch.testing.assert_close(after[:, :1] * after[:, 1:].conj(), before[:, :1] * before[:, 1:].conj())
    angles = (after / before).angle()[:, 0, 0, 0]
    torch.testing.assert_close(after, before * torch.polar(torch.ones(6), angles)[:, None, None, None])
    assert angles.diff().abs().min() > 0.01, "each image has an angle of its own"
    assert turn_phase(pixels[3:4], _keys(6)[3:4]).equal(turned[3:4])
