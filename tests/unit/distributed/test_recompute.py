"""Recomputing changes neither names nor numbers."""

import pytest
import torch

from ringmoe.distributed.recompute import recompute_blocks
from ringmoe.errors import ConfigError
from ringmoe.naming import canonical_entries
from tests.fixtures.tiny_moe import TinyMoe, micro_batch


def test_names_losses_and_gradients_stay_and_blocks_run_twice():
    plain, recomputed = TinyMoe(), TinyMoe()
    recompute_blocks(recomputed, ["blocks.0", "blocks.1"])
    calls = []
    recomputed.blocks[1].experts.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    losses = [model(*micro_batch(0)) for model in (plain, recomputed)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert calls == [False, True]
    names = [entry.name for entry in canonical_entries(recomputed)]
    assert names == [entry.name for entry in canonical_entries(plain)]
    for (name, kept), again in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(kept.grad, again.grad), name


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"blocks\.7"):
        recompute_blocks(TinyMoe(), ["blocks.7"])
