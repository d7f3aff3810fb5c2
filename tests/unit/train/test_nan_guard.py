"""What counts as a step that went wrong, and how long is looked for its layer; whole runs are in tests/end_to_end."""

import gc
import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ringmoe.train.callbacks.nan_guard import NanGuard
from ringmoe.train.diagnose import first_not_finite
from ringmoe.train.metrics import Row
from ringmoe.train.step import MicroBatch


class Small(nn.Module):
    """Layers of which the second gives what is not finite, and how often an output lived longer than it was needed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 2), nn.Threshold(1e9, torch.inf), nn.Linear(2, 1)
        self.num_alive = 0

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        x = self.first(x)
        given = weakref.ref(x)
        x = self.second(x)
        gc.collect()
        self.num_alive += given() is not None
        return SimpleNamespace(loss=self.third(x).sum())


class Hungry(nn.Module):
    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        raise torch.OutOfMemoryError


@pytest.mark.parametrize("backward", [False, True])
def test_outputs_are_kept_for_gradients_alone(backward):
    model = Small()
    assert first_not_finite(model, torch.ones(3, 2), backward=backward).endswith("is not finite is second")
    assert model.num_alive == backward


def test_too_little_memory_to_look_is_said():
    assert first_not_finite(Hungry(), torch.ones(1), backward=False).startswith("there was not enough memory")


@pytest.fixture
def trainer() -> SimpleNamespace:
    """As much of a trainer as the callback sees, of which no micro-batch has a loss that is not finite."""
    said: list[str] = []
    made: list[int] = []

    def batch(step: int, micro: int) -> SimpleNamespace:
        made.append(step + 1)
        return SimpleNamespace(images={}, to=lambda device: torch.ones(1))

    return SimpleNamespace(
        recent=[[MicroBatch(torch.ones(0), {})] for _ in range(9)],
        loader=SimpleNamespace(batch=batch),
        engine=SimpleNamespace(can_skip=True),
        world=SimpleNamespace(rank=0, device="cpu"),
        model=Hungry(),
        say=said.append,
        said=said,
        made=made,
        doubt="",
        num_passed=0,
    )


def test_no_step_is_called_left_out_for_what_is_no_loss_or_gradient(trainer, tmp_path):
    rows = [Row(step, {"loss": 1.0, "gradient_norm": 1.0, "mfu": math.nan}) for step in (1, 2)]
    NanGuard(tmp_path, 0, backward=False).on_steps(trainer, rows)
    assert [row.scalars["skipped"] for row in rows] == [0, 0]
    assert trainer.said == ["steps 1 to 2: mfu not finite where loss and gradient are"]
    assert not trainer.doubt


def test_a_few_steps_of_each_reading_and_of_the_run_are_searched(trainer, tmp_path: Path):
    guard = NanGuard(tmp_path, 99, backward=False)
    for first in range(1, 40, 4):
        guard.on_steps(
            trainer, [Row(step, {"loss": 1.0, "gradient_norm": math.inf}) for step in range(first, first + 4)]
        )
    assert trainer.made == [1, 2, 5, 6, 9, 10, 13, 14]
    assert len(trainer.said) == 40
    assert trainer.said[-1].endswith("its layer is not looked for. The step was left out")
    assert trainer.doubt == "its numbers were not finite"
