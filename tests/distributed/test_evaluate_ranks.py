"""Ranks that share experts and held-out tiles find what one process finds, also where some of them have no tile."""

import shutil
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ringmoe.data.loader import DataConfig
from ringmoe.errors import ShardError
from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.testing.ranks import run_ranks
from ringmoe.train.evaluate import HeldOut, evaluate
from ringmoe.train.loaders import whole_tiles_loader
from tests.fixtures.shards import build_shards, spoil_tiles

pytestmark = pytest.mark.distributed

MODEL = RingMoEConfig(image_size=32, depths=(1, 1), dims=(16, 32), head_dim=8, window=4, mask_unit=8)
RANKS = 2
# tiles of each modality and of a batch: fewer tiles than ranks, one for each, and a rank without one in some round
CASES = [(1, 32), (1, 1), (2, 32), (3, 1), (3, 2)]


def _evaluate_all(folders: list[Path], rank: int = 0, world: int = 1) -> list[dict[str, HeldOut] | str]:
    model = RingMoE(MODEL, ExpertParallel(world, rank, dist.group.WORLD if world > 1 else None))
    initialise(model, 0)
    found: list[dict[str, HeldOut] | str] = []
    for shards in folders:
        config = DataConfig(shards=(shards,), bad_tiles=0.9)
        with closing(whole_tiles_loader(config, MODEL, rank=rank, world=world)) as loader:
            for tiles, batch in CASES:
                try:
                    found.append(evaluate(model, loader, device=torch.device("cpu"), masks=2, batch=batch, tiles=tiles))
                except ShardError as error:
                    found.append(str(error))
    return found


def _on_a_rank(folders: list[Path]) -> list[dict[str, HeldOut] | str]:
    return _evaluate_all(folders, dist.get_rank(), RANKS)


def test_ranks_without_a_tile_take_part(tmp_path):
    whole = build_shards(tmp_path, tile=32, side=128)
    spoilt = Path(shutil.copytree(whole, tmp_path / "spoilt"))
    spoil_tiles(spoilt, "opt", every=1000, split="val")  # the first, the only one that rank 0 has of two tiles
    alone = _evaluate_all([whole, spoilt])
    assert alone[len(CASES)] == "none of the 1 held-out tiles of opt can be read: `ringmoe shards verify`"
    for answers in run_ranks(_on_a_rank, RANKS, [whole, spoilt]):
        for ours, expected in zip(answers, alone, strict=True):
            if isinstance(expected, str):
                assert ours == expected
                continue
            for key, held_out in expected.items():
                assert astuple(ours[key]) == pytest.approx(astuple(held_out), rel=1e-5)
