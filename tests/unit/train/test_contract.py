"""A checkpoint and shards that do not fit are told apart in words."""

from contextlib import closing

import pytest

from ringmoe.data.loader import DataConfig
from ringmoe.errors import ShardError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.train.contract import check_inputs, contract_of
from ringmoe.train.loaders import whole_tiles_loader
from tests.fixtures.shards import build_shards


def test_a_modality_that_the_checkpoint_does_not_know_is_named(tmp_path):
    config = RingMoEConfig(image_size=32, patch_size=4, depths=(1, 1), dims=(16, 32), head_dim=8, window=4, mask_unit=8)
    data = DataConfig(shards=(build_shards(tmp_path, tile=32, side=128),))
    with closing(whole_tiles_loader(data, config, split="train")) as loader:
        contract = contract_of(config, loader)
        check_inputs(contract, loader, ours="checkpoint a", theirs="shards b")
        del contract["inputs"]["ms"]
        with pytest.raises(ShardError, match=r"shards b: checkpoint a says nothing.*'ms', only of opt, sar_l1"):
            check_inputs(contract, loader, ours="checkpoint a", theirs="shards b")
