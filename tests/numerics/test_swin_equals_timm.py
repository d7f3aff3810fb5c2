"""With one plain FFN in each block the encoder is SwinV2: same weights, same features and gradients as timm's."""

from dataclasses import replace

import pytest
import torch

from ringmoe import counter, modality
from ringmoe.batch import ModalityImages
from ringmoe.checkpoint.pretrained import load_model
from ringmoe.checkpoint.store import CheckpointWriter
from ringmoe.cli import prune
from ringmoe.config import to_dict
from ringmoe.errors import ConfigError
from ringmoe.layers.init import initialise
from ringmoe.models import build_model, config_from
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.export import to_timm
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries

timm = pytest.importorskip("timm", reason="timm's SwinV2 is the reference; it comes with the dev extra")

# image size, window: the paper's, a small one, and two whose maps (40, 20, 10, 5 and 24, 12, 6, 3 tokens) need padding
SIZES = [(192, 12), (96, 6), (160, 12), (96, 7)]


def _pair(image_size, window, reference_size=None):
    """Our dense model with random weights, and timm's with the same ones."""
    config = RingMoEConfig(
        modalities=("ms",),
        image_size=reference_size or image_size,
        depths=(2, 2, 2, 2),
        dims=(16, 32, 64, 128),
        head_dim=16,
        window=window,
    ).dense()
    ours = RingMoE(config)
    initialise(ours, seed=1)
    for entry in canonical_entries(ours):  # zero biases and unit norms would hide mistakes
        keys = torch.tensor([counter.key("noise", entry.name)])
        entry.tensor.add_(0.1 * counter.normal(keys, entry.tensor.numel()).view_as(entry.tensor))
    ours.positions.data.zero_()
    theirs = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=image_size,
        in_chans=modality.get("ms").num_channels,
        embed_dim=config.dims[0],
        depths=config.depths,
        num_heads=[dim // config.head_dim for dim in config.dims],
        window_size=window,
        pretrained_window_sizes=[min(window, config.map_size(stage)) for stage in range(4)]
        if reference_size
        else [0] * 4,
        num_classes=0,
        drop_path_rate=0.0,
    )
    missing = theirs.load_state_dict(to_timm(_state(ours), config, "ms"), strict=True)
    assert not missing.missing_keys
    return ours, theirs


def _state(model):
    return {entry.name: entry.tensor for entry in canonical_entries(model)}


def test_what_the_command_makes_is_a_swin_too(tmp_path, monkeypatch):
    """Experts merged by ``ringmoe-prune --mode kc`` and the weights of the file under timm's names: same features."""
    config = RingMoEConfig(
        modalities=("opt", "ms"), image_size=96, depths=(2, 2), dims=(16, 32), head_dim=16, window=6, mask_unit=16
    )
    sparse = RingMoE(config)
    initialise(sparse, seed=1)
    with CheckpointWriter(tmp_path / "sparse") as writer:
        for entry in canonical_entries(sparse):
            keys = torch.tensor([counter.key("noise", entry.name)])
            noise = counter.normal(keys, entry.tensor.numel()).view_as(entry.tensor)
            writer.add(entry.name, torch.zeros_like(noise) if entry.name == "positions" else entry.tensor + 0.1 * noise)
        inputs = {key: {"spec": modality.get(key).to_dict(), "statistics": []} for key in config.modalities}
        writer.commit(config={"format": 1, "family": "ringmoe", "model": to_dict(config), "inputs": inputs})
    command = ["ringmoe-prune", str(tmp_path / "sparse"), str(tmp_path / "dense"), "--mode", "kc", "--modality", "ms"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as exit_:
        prune.main()
    assert exit_.value.code == 0
    ours = load_model(tmp_path / "dense", lambda values: build_model(config_from(values)))
    theirs = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=96,
        in_chans=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=6,
        num_classes=0,
        drop_path_rate=0.0,
    )
    theirs.load_state_dict(to_timm(_state(ours), ours.config, "ms"), strict=True)
    images = _images(96)
    torch.testing.assert_close(
        ours.eval().features(images, "ms")[-1],
        theirs.eval().forward_features(images.pixels_BCHW).permute(0, 3, 1, 2),
        atol=1e-5,
        rtol=1e-5,
    )


def _images(image_size):
    pixels = torch.randn(2, 4, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return ModalityImages(pixels, torch.ones(2, 4, dtype=torch.bool), torch.arange(2), ("a", "b"))


@pytest.mark.parametrize(("image_size", "window"), SIZES)
def test_features_of_every_stage_and_the_final_norm_are_equal(image_size, window):
    ours, theirs = _pair(image_size, window)
    images = _images(image_size)
    final, stages = theirs.forward_intermediates(images.pixels_BCHW, norm=True)
    features = ours.features(images, "ms")
    for feature, stage in zip(features[:-1], stages[:-1], strict=True):
        torch.testing.assert_close(feature, stage, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[-1], final.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_a_larger_input_extends_the_position_bias_like_pretrained_window_sizes():
    ours, theirs = _pair(192, 12, reference_size=96)
    images = _images(192)
    torch.testing.assert_close(
        ours.features(images, "ms")[-1],
        theirs.forward_features(images.pixels_BCHW).permute(0, 3, 1, 2),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(("image_size", "window"), SIZES[1:])
def test_gradients_of_every_weight_are_equal(image_size, window):
    ours, theirs = _pair(image_size, window)
    images = _images(image_size)
    ours.features(images, "ms")[-1].square().mean().backward()
    theirs.forward_features(images.pixels_BCHW).square().mean().backward()
    gradients = {e.name: e.parameter.grad for e in canonical_entries(ours) if e.parameter.grad is not None}
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    mapped = to_timm(gradients, ours.config, "ms")
    assert mapped.keys() == expected.keys()
    for name, gradient in mapped.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            gradient, expected[name], atol=1e-4 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_model_with_routed_experts_is_no_swin():
    config = RingMoEConfig(modalities=("opt",), depths=(1,), dims=(32,), image_size=32)
    with pytest.raises(ConfigError, match="merge the experts first"):
        to_timm({}, config, "opt")
    with pytest.raises(ConfigError, match="the model has opt"):
        to_timm({}, replace(config.dense()), "ms")
