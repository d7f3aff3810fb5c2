"""A real, small training run of one process: AdamW on a model with stacked experts, saved and loaded by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ringmoe.checkpoint.state import MOMENTS, TrainerState
from ringmoe.distributed.topology import Topology
from ringmoe.moe.experts import Experts
from ringmoe.naming import Entry, canonical_entries


class Layer(nn.Module):
    """Two experts of which every row sees one, and a plain linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.experts = Experts(4, 8, ("collaborative.0", "collaborative.3"))

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(self.gate(x_TD), torch.ones(len(x_TD)), torch.tensor([3, len(x_TD) - 3]))


class Run:
    """Model and optimiser of a run in one process; it has what saving asks of an engine."""

    def __init__(self, seed: int = 0) -> None:
        self.topology = Topology()
        self.model = Layer()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.step = 0

    def train(self, num_steps: int) -> list[float]:
        """Takes steps on data that is a function of the step, and returns their losses."""
        losses = []
        for _ in range(num_steps):
            x_TD = torch.randn(8, 4, generator=torch.Generator().manual_seed(self.step))
            loss = self.model(x_TD).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            losses.append(loss.item())
        return losses

    def state(self) -> TrainerState:
        return TrainerState(
            step=self.step, seed=5, data_fingerprint="abc", data={"opt": 40}, callbacks={"best": {"loss": 0.1}}
        )

    def state_of(self, entries: Iterable[Entry]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for entry in entries:
            of_parameter = self.optimizer.state[entry.parameter]
            moments = {kind: of_parameter[kind] for kind in MOMENTS}
            state = {
                "weight": entry.tensor,
                **{kind: value if entry.index is None else value[entry.index] for kind, value in moments.items()},
            }
            yield entry.name, {kind: value.detach().clone() for kind, value in state.items()}

    def load_state(self, getter: Callable[[str], Mapping[str, Tensor]], step: int) -> None:
        self.step = step
        for parameter in self.model.parameters():
            zeros = {kind: torch.zeros_like(parameter) for kind in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **zeros}
        for entry in canonical_entries(self.model):
            saved = getter(entry.name)
            entry.tensor.copy_(saved["weight"])
            for kind in MOMENTS:
                value = self.optimizer.state[entry.parameter][kind]
                (value if entry.index is None else value[entry.index]).copy_(saved[kind])


@pytest.fixture
def new_run() -> Callable[..., Run]:
    return Run


@pytest.fixture
def config() -> dict[str, Any]:
    return {
        "format": 1,
        "family": "ringmoe",
        "model": {"modalities": ["opt"], "top_k": 1, "dims": (4, 8)},
        "inputs": {"opt": {"statistics": [{"mean": float("nan"), "std": 2.5}]}},
    }
