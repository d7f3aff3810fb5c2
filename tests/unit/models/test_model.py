"""The model: names, what the encoder may see, and that the result does not depend on how it is computed."""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ringmoe.batch import Batch
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.masking import draw_mask
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.naming import canonical_entries
from ringmoe.testing.batches import random_batch, random_images

BLOCK = {
    "attention.qkv.weight",
    "attention.q_bias",
    "attention.v_bias",
    "attention.logit_scale",
    "attention.position_bias.0.weight",
    "attention.position_bias.0.bias",
    "attention.position_bias.2.weight",
    "attention.proj.weight",
    "attention.proj.bias",
    "norm1.weight",
    "norm1.bias",
    "norm2.weight",
    "norm2.bias",
    *(f"moe.shared.{part}" for part in ("w1", "b1", "w2", "b2")),
}


def _names(config, *parallel):
    with torch.device("meta"):
        return [entry.name for entry in canonical_entries(RingMoE(config, *parallel))]


def _images(config, **changes):
    return {key: replace(images, **changes) for key, images in random_batch(config.modalities, 2, 32).images.items()}


def _loss_and_gradients(model, batch):
    model.zero_grad()
    output = model(batch)
    output.loss.backward()
    return output, {e.name: e.parameter.grad[e.index if e.index is not None else ...] for e in canonical_entries(model)}


def test_tensors_have_exactly_these_names(config):
    config = config.for_modalities(("opt", "sar_l1")).pruned([(0, 1, 2, 3), (2,), ()])
    expected = {"positions", "mask_token", "norm.weight", "norm.bias", "merges.0.reduction.weight"}
    expected |= {f"merges.0.norm.{part}" for part in ("weight", "bias")}
    for key in config.modalities:
        expected |= {
            f"{group}.{key}.{part}" for group in ("embed", "embed_norm", "decoders") for part in ("weight", "bias")
        }
    for block in range(3):
        families = [f"specialised.{key}" for key in config.modalities]
        experts = [f"{family}.{k}" for family in families for k in range(2)]
        experts += [f"collaborative.{k}" for k in config.collaborative_ids(block)]
        gates = families + ["collaborative"] * bool(config.collaborative_ids(block))
        parts = BLOCK | {f"moe.{expert}.{part}" for expert in experts for part in ("w1", "b1", "w2", "b2")}
        parts |= {f"moe.router.{gate}.{part}" for gate in gates for part in ("gate", "noise")}
        expected |= {f"blocks.{block}.{part}" for part in parts}
    names = _names(config)
    assert len(names) == len(set(names))
    assert set(names) == expected


def test_dense_models_have_no_router_and_models_for_use_no_decoders(config):
    names = _names(replace(config.dense(), decoders=False))
    assert not [name for name in names if "router" in name or "specialised" in name or "decoders" in name]
    assert {name.removeprefix("blocks.2.") for name in names if name.startswith("blocks.2.")} == BLOCK


def test_expert_parallel_ranks_hold_each_expert_once_and_all_else_alike(config):
    ranks = [_names(config, ExpertParallel(size=2, rank=rank)) for rank in range(2)]
    common = set(ranks[0]) & set(ranks[1])
    assert set(ranks[0]) | set(ranks[1]) == set(_names(config))
    assert not [name for name in common if ".moe.specialised." in name or ".moe.collaborative." in name]


def test_every_parameter_gets_a_gradient_and_the_loss_is_its_parts(config, build):
    model = build(config)
    output, gradients = _loss_and_gradients(model, random_batch(config.modalities, 2, 32))
    unmoved = [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0]
    # an expert that no token selected has a zero gradient; all that is not an expert must move
    assert not [name for name in unmoved if ".moe.specialised." not in name and ".moe.collaborative." not in name]
    balance = output.balance_collaborative + output.balance_specialised_M.sum()
    torch.testing.assert_close(output.loss, output.recon_M.sum() + 0.01 * balance)
    assert output.recon_M.shape == output.balance_specialised_M.shape == (4,)
    assert output.routing_counts_LME.shape == (3, 4, 6)
    assert torch.equal(output.tokens_LM, torch.tensor([[128.0] * 4, [32.0] * 4, [32.0] * 4]))
    for family in (slice(0, 2), slice(2, 6)):
        assert torch.equal(output.routing_counts_LME[..., family].sum(-1), output.tokens_LM)


def test_masked_pixels_never_leak(config, build):
    model = build(config).eval()
    images = _images(config)
    hidden = {key: draw_mask(of.keys_B, (32, 32), config).pixels_BHW[:, None] for key, of in images.items()}
    other = {
        key: replace(of, pixels_BCHW=torch.where(hidden[key], 100.0, of.pixels_BCHW)) for key, of in images.items()
    }
    first, second = model.reconstruct(Batch(images)), model.reconstruct(Batch(other))
    for key in config.modalities:
        assert torch.equal(first[key].mask_BHW, hidden[key][:, 0])
        assert torch.equal(first[key].prediction_BTHW, second[key].prediction_BTHW)
        assert not torch.equal(first[key].target_BTHW, second[key].target_BTHW)
    assert not torch.equal(model.features(images["ms"], "ms")[-1], model.features(other["ms"], "ms")[-1])


def test_masked_tokens_use_visible_ones(config, build):
    model = build(config).eval()
    images = _images(config)
    before = model.reconstruct(Batch(images))["opt"]
    visible = ~before.mask_BHW[:, None]
    changed = replace(images["opt"], pixels_BCHW=torch.where(visible, 0.0, images["opt"].pixels_BCHW))
    after = model.reconstruct(Batch(images | {"opt": changed}))["opt"]
    hidden = before.mask_BHW[:, None].expand_as(before.prediction_BTHW)
    assert ((before.prediction_BTHW - after.prediction_BTHW).abs()[hidden] > 0).all()


def test_absent_channels_are_neither_seen_nor_learned(config, build):
    model = build(config).eval()
    images = _images(config)["sar_l1"]
    present = torch.tensor([True] * 4 + [False] * 4).repeat(2, 1)
    pixels = images.pixels_BCHW.clone()
    pixels[:, 4:] = 7.0
    partial = replace(images, present_BC=present)
    errors = [model(Batch({"sar_l1": replace(partial, pixels_BCHW=p)})).loss for p in (pixels, images.pixels_BCHW)]
    assert errors[0] == errors[1]
    whole = model(Batch({"sar_l1": images})).loss
    assert whole != errors[0]


def test_images_do_not_influence_each_other(config, build):
    model = build(config).eval()
    batch = random_batch(config.modalities, 2, 32)
    together = model.features(batch.images["ms"], "ms")[-1]
    first = batch.images["ms"]
    alone = replace(first, pixels_BCHW=first.pixels_BCHW[1:], present_BC=first.present_BC[1:], keys_B=first.keys_B[1:])
    torch.testing.assert_close(model.features(alone, "ms")[-1], together[1:])
    mixed = model.reconstruct(batch)["ms"].prediction_BTHW
    torch.testing.assert_close(model.reconstruct(Batch({"ms": first}))["ms"].prediction_BTHW, mixed)


def test_order_of_modalities_changes_nothing_but_the_order(config, build):
    other = replace(config, modalities=config.modalities[::-1])
    batch = random_batch(config.modalities, 2, 32)
    output, gradients = _loss_and_gradients(build(config), batch)
    turned, turned_gradients = _loss_and_gradients(build(other), batch)
    torch.testing.assert_close(turned.recon_M.flip(0), output.recon_M)
    torch.testing.assert_close(turned.routing_counts_LME.flip(1), output.routing_counts_LME)
    for name, gradient in gradients.items():
        torch.testing.assert_close(turned_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_a_batch_may_lack_a_modality(config, build):
    batch = random_batch(("ms", "sar_l2"), 2, 32)
    output = build(config)(batch)
    assert torch.equal(output.recon_M > 0, torch.tensor([False, True, False, True]))
    assert torch.equal(output.tokens_LM[0], torch.tensor([0.0, 128.0, 0.0, 128.0]))


def test_gates_are_noisy_in_training_only_and_by_key(config, build):
    config = replace(config, mask_ratio=0.5)
    model, batch = build(config), random_batch(config.modalities, 2, 32)
    assert torch.equal(model(batch).loss, model(batch).loss)
    quiet = model.eval()(batch).routing_counts_LME
    assert not torch.equal(model.train()(batch).routing_counts_LME, quiet)
    calm = build(replace(config, gate_noise=False))
    assert torch.equal(calm(batch).routing_counts_LME, quiet)


def test_recomputed_blocks_give_the_same_bits(config, build):
    batch = random_batch(config.modalities, 2, 32)
    plain, gradients = _loss_and_gradients(build(config), batch)
    for reentrant in (False, True):
        model = build(config)
        for block in model.blocks:
            forward = block.forward
            block.forward = lambda *inputs, f=forward: checkpoint(f, *inputs, use_reentrant=reentrant)  # noqa: B023
        again, recomputed = _loss_and_gradients(model, batch)
        assert torch.equal(again.loss, plain.loss)
        assert all(torch.equal(recomputed[name], gradient) for name, gradient in gradients.items())


def test_bfloat16_follows_float32(config, build):
    batch = random_batch(config.modalities, 2, 32)
    output, gradients = _loss_and_gradients(build(config).eval(), batch)
    half, half_gradients = _loss_and_gradients(build(config).to(torch.bfloat16).eval(), batch)
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.recon_M, output.recon_M, atol=0.02, rtol=0.02)
    assert all(torch.isfinite(gradient).all() for gradient in half_gradients.values())
    cosine = torch.cosine_similarity(
        gradients["decoders.ms.weight"].flatten(), half_gradients["decoders.ms.weight"].float().flatten(), dim=0
    )
    assert cosine > 0.99


def test_features_are_the_maps_of_all_stages_at_any_size(config, build):
    model = build(config).eval()
    shapes = [tuple(stage.shape) for stage in model.features(random_images("opt", 2, 32), "opt")]
    assert shapes == [(2, 16, 8, 8), (2, 32, 4, 4)]
    odd = random_images("opt", 1, 36)
    assert [tuple(stage.shape[2:]) for stage in model.features(odd, "opt")] == [(9, 9), (5, 5)]


def test_a_pruned_model_counts_in_the_columns_of_the_original_ids(config, build):
    model = build(config.pruned([(0, 1, 2, 3), (2,), ()]))
    counts_LME = model(random_batch(config.modalities, 2, 32)).routing_counts_LME
    assert torch.equal(counts_LME[1, :, 2:], torch.tensor([[0.0, 0.0, 32.0, 0.0]] * 4))
    assert torch.equal(counts_LME[2, :, 2:], torch.zeros(4, 4))


def test_what_does_not_fit_is_refused_in_words(config, build):
    model = build(config.for_modalities(("opt", "ms")))
    images = random_images("opt", 1, 32)
    with pytest.raises(ConfigError, match=r"the batch holds \['sar_l2'\]; the model has opt, ms"):
        model(random_batch(("sar_l2",), 1, 32))
    with pytest.raises(ConfigError, match="the batch holds nothing"):
        model(Batch({}))
    with pytest.raises(ConfigError, match="ms: images of 3 channels; expected B, G, R, NIR"):
        model(Batch({"ms": images}))
    with pytest.raises(ConfigError, match="one size"):
        model(Batch({"opt": images, "ms": random_images("ms", 1, 64)}))
    with pytest.raises(ConfigError, match="opt: images of 36 x 36 pixels; both must be multiples of 8"):
        model(random_batch(("opt",), 1, 36))
    with pytest.raises(ConfigError, match="no decoders"):
        build(replace(config, decoders=False))(Batch({"opt": images}))
