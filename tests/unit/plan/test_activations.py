"""Counted activations are what autograd saves, within a tenth; where they are not, the message shows both lists."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ringmoe.distributed.recompute import recompute_blocks
from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.experts import recompute_hidden
from ringmoe.plan.activations import activations, attention_terms, block_terms, moe_terms
from ringmoe.testing.batches import random_batch
from tests.unit.plan.measure import Saved, saved_by_autograd

TOLERANCE = 0.1
# windows that divide the map and that do not, shifted and not, one modality to three, one to two selected experts
MODELS = {
    "three stages": RingMoEConfig(
        modalities=("opt", "ms", "sar_l1"),
        image_size=64,
        patch_size=4,
        depths=(2, 1, 1),
        dims=(32, 64, 128),
        head_dim=16,
        window=6,
        mask_unit=16,
    ),
    "top 2 of two modalities": RingMoEConfig(
        modalities=("opt", "sar_l2"),
        image_size=96,
        depths=(2, 2),
        dims=(48, 80),
        head_dim=16,
        window=12,
        top_k=2,
    ),
    "dense": RingMoEConfig(
        modalities=("sar_l2",),
        image_size=64,
        depths=(1, 2),
        dims=(32, 64),
        head_dim=16,
        window=8,
        num_specialised=0,
        num_collaborative=0,
    ),
}
IMAGES = {"opt": 2, "ms": 1, "sar_l1": 1, "sar_l2": 2}


def _model(config: RingMoEConfig, dtype: torch.dtype) -> RingMoE:
    model = RingMoE(config)
    initialise(model, 0)
    return model.to(dtype).train()


def _images(config: RingMoEConfig) -> dict[str, int]:
    return {key: IMAGES[key] for key in config.modalities}


def _forward(model: RingMoE) -> tuple[Saved, Tensor]:
    images = _images(model.config)
    batches = {key: random_batch([key], num, model.config.image_size) for key, num in images.items()}
    batch = type(next(iter(batches.values())))({key: each.images[key] for key, each in batches.items()})
    with saved_by_autograd(model) as saved:
        return saved, model(batch).loss


def _assert_close(counted: Counter[str], saved: Saved) -> None:
    lines = [f"counted {counted.total():,} bytes, autograd saves {saved.bytes:,}", "counted:"]
    lines += [f"  {num:>12,} {term}" for term, num in counted.most_common()]
    lines += ["saved:", *(f"  {num:>12,} {kind}" for kind, num in saved.by_kind.most_common(30))]
    assert counted.total() == pytest.approx(saved.bytes, rel=TOLERANCE), "\n".join(lines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_all_kept(name, dtype):
    model = _model(MODELS[name], dtype)
    saved, _ = _forward(model)
    _assert_close(Counter(activations(model.config, _images(model.config), dtype.itemsize).nothing), saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_experts_recomputed(name, dtype):
    model = _model(MODELS[name], dtype)
    recompute_hidden(model)
    saved, _ = _forward(model)
    _assert_close(Counter(activations(model.config, _images(model.config), dtype.itemsize).experts), saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_blocks_recomputed(name, dtype):
    model = _model(MODELS[name], dtype)
    recompute_blocks(model, [f"blocks.{block}" for block in range(model.config.num_blocks)])
    saved, loss = _forward(model)
    counted = Counter(activations(model.config, _images(model.config), dtype.itemsize).blocks)
    largest = counted.pop("one block, recomputed")
    _assert_close(counted, saved)
    with saved_by_autograd(model) as again:
        loss.backward()
    # every block comes back once, so that the largest is at least its share of them
    blocks = [block_terms(model.config, b, _images(model.config), dtype.itemsize) for b in range(len(model.blocks))]
    _assert_close(sum(blocks, Counter()), again)
    assert largest == max(terms.total() for terms in blocks)


def _alone(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Saved:
    with saved_by_autograd(module) as saved:
        call(x.requires_grad_())
    return saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_each_part_of_each_block(name, dtype):
    config = MODELS[name]
    model, images = _model(config, dtype), _images(config)
    for index, block in enumerate(model.blocks):
        stage = config.stage_of(index)
        side, num, dim = config.map_size(stage), sum(images.values()), config.dims[stage]
        tokens = num * side**2
        saved = _alone(block.attention, block.attention, torch.randn(num, side, side, dim, dtype=dtype))
        _assert_close(attention_terms(config, index, images, dtype.itemsize), saved)
        sizes = tuple(count * side**2 for count in images.values())
        layer, keys_T = block.moe, torch.arange(tokens)
        saved = _alone(
            layer,
            lambda x, layer=layer, sizes=sizes, keys_T=keys_T: layer(x, sizes, keys_T)[0],
            torch.randn(tokens, dim, dtype=dtype),
        )
        _assert_close(moe_terms(config, index, tokens, dtype.itemsize), saved)
