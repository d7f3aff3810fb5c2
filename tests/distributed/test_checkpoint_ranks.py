"""Two ranks that share the experts save, resume and load as one."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ringmoe import modality
from ringmoe.batch import Batch, ModalityImages
from ringmoe.checkpoint.load import load_latest
from ringmoe.checkpoint.pretrained import load_model, load_weights
from ringmoe.checkpoint.runs import folder_of, open_checkpoint, step_folder
from ringmoe.checkpoint.save import save_checkpoint
from ringmoe.checkpoint.state import TrainerState
from ringmoe.config import to_dict
from ringmoe.errors import CheckpointError
from ringmoe.models import build_model, config_from
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.naming import canonical_entries
from ringmoe.testing.ranks import run_ranks

pytestmark = pytest.mark.distributed

MODEL = RingMoEConfig(
    modalities=("opt", "sar_l2"), image_size=16, patch_size=2, depths=(1, 1), dims=(8, 16), head_dim=4, mask_unit=4
)
CONFIG = {
    "format": 1,
    "family": "ringmoe",
    "model": to_dict(MODEL),
    "inputs": {key: {"spec": modality.get(key).to_dict(), "statistics": []} for key in MODEL.modalities},
}


class Run:
    """One rank of a run whose batches are a function of step and rank."""

    def __init__(self, seed: int) -> None:
        # here, not above: only the ranks pay for the import of the engine
        from ringmoe.distributed.engine import EngineConfig, build_engine
        from ringmoe.distributed.launch import start
        from ringmoe.layers.init import initialise

        self.rank = start().rank
        self.step = 0
        parallel = ExpertParallel(size=2, rank=self.rank)
        model = RingMoE(MODEL, parallel)
        initialise(model, seed)
        groups = [{"name": "all", "params": list(model.parameters())}]
        self.engine = build_engine(model, groups, parallel, EngineConfig(dtype="fp32", micro_batch=4, lr=1e-2))

    def train(self, num_steps: int) -> list[float]:
        losses = []
        for _ in range(num_steps):
            loss = self.engine.forward(self._batch()).loss
            self.engine.backward(loss)
            self.engine.step()
            self.step += 1
            losses.append(loss.item())
        return losses

    def save(self, folder: Path) -> Path:
        state = TrainerState(step=self.step, seed=3, data_fingerprint="abc")
        return save_checkpoint(folder, self.engine, state, config=CONFIG, max_file_bytes=40_000)

    def resume(self, folder: Path) -> None:
        state = load_latest(folder, self.engine, config=CONFIG, seed=3, data_fingerprint="abc")
        assert state is not None
        self.step = state.step

    def _batch(self) -> Batch:
        images = {}
        for key in MODEL.modalities:
            shape = (2, modality.get(key).num_channels, 16, 16)
            generator = torch.Generator().manual_seed(100 * self.step + self.rank)
            pixels_BCHW = torch.randn(shape, generator=generator)
            keys_B = torch.tensor([self.step, self.rank])
            images[key] = ModalityImages(pixels_BCHW, torch.ones(shape[:2], dtype=torch.bool), keys_B, ("a", "b"))
        return Batch(images)


def _save_then_go_on(folder: Path) -> dict[str, Any]:
    run = Run(seed=0)
    run.train(2)
    run.save(folder)
    # as arrays: a tensor in an answer would live in the memory of a process that has ended
    weights = {entry.name: entry.tensor.clone().numpy() for entry in canonical_entries(run.engine.model)}
    losses = run.train(2)
    run.save(folder)
    return {"losses": losses, "weights": weights, "full disk": _save_with_a_full_disk_on_one_rank(run, folder)}


def _save_with_a_full_disk_on_one_rank(run: Run, folder: Path) -> str:
    run.train(1)
    if run.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
    try:
        run.save(folder)
    except CheckpointError as error:
        return str(error)
    return "saved"


def _resume(folder: Path) -> tuple[int, list[float]]:
    run = Run(seed=1)
    run.resume(folder)
    return run.step, run.train(2)


def _load_share(folder: Path) -> set[str]:
    import torch.distributed as dist

    reader = open_checkpoint(folder)
    read: list[str] = []
    tensor_of = reader.tensor
    reader.tensor = lambda name: read.append(name) or tensor_of(name)
    model = RingMoE(MODEL, ExpertParallel(size=2, rank=dist.get_rank()))
    load_weights(model, reader)
    assert sorted(read) == sorted(entry.name for entry in canonical_entries(model))
    assert all(torch.equal(entry.tensor, tensor_of(entry.name)) for entry in canonical_entries(model))
    return set(read)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """A run of two ranks with checkpoints after 2 and after 4 steps, and what each rank saw."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(_save_then_go_on, 2, folder, init=False)


def test_every_tensor_is_written_once_by_one_of_the_ranks(saved):
    folder, ranks = saved
    reader = open_checkpoint(step_folder(folder, 2))
    weights = ranks[0]["weights"] | ranks[1]["weights"]
    assert set(reader.names) == set(weights)
    assert all(np.array_equal(reader.tensor(name), array) for name, array in weights.items())
    writers = {
        int(file.split("-")[1].split(".")[0]) % 2 for file in reader.manifest.files if file.startswith("weights")
    }
    assert writers == {0, 1}
    assert reader.manifest.topology == {"world": 2, "expert_parallel": 2}


def test_what_one_rank_cannot_write_all_ranks_say(saved):
    folder, ranks = saved
    assert ranks[0]["full disk"] == ranks[1]["full disk"]
    assert "cannot be written" in ranks[0]["full disk"]
    assert sorted(path.name for path in folder_of(folder).iterdir()) == ["latest", "step-00000002", "step-00000004"]


def test_one_process_holds_what_two_ranks_trained(saved):
    folder, ranks = saved
    model = load_model(step_folder(folder, 2), lambda values: build_model(config_from(values)))
    weights = ranks[0]["weights"] | ranks[1]["weights"]
    assert all(np.array_equal(entry.tensor, weights[entry.name]) for entry in canonical_entries(model))


def test_each_rank_reads_its_own_experts_only(saved):
    folder, _ = saved
    first, second = run_ranks(_load_share, 2, step_folder(folder, 2))
    assert "blocks.1.moe.specialised.opt.2.w1" in first - second
    assert "blocks.1.moe.collaborative.3.b2" in second - first


def test_a_damaged_checkpoint_sends_all_ranks_to_the_one_before(saved):
    folder, ranks = saved
    newest = step_folder(folder, 4)
    path = sorted(newest.glob("optimizer-*"))[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    resumed = run_ranks(_resume, 2, folder, init=False)
    assert newest.with_suffix(".damaged").is_dir()
    assert resumed == [(2, rank["losses"]) for rank in ranks], "resumed is the uninterrupted run, bit for bit"
