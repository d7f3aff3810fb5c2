"""Who uses which expert: counted while the run goes on, drawn, and kept in every checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.imbalance import dead_experts, imbalance
from ringmoe.moe.usage import Usage
from ringmoe.report.canvas import save_png, to_rgb
from ringmoe.report.expert_load import expert_load_figure
from ringmoe.train.callbacks.base import Periodic
from ringmoe.train.metrics import Row

if TYPE_CHECKING:
    from ringmoe.train.trainer import Trainer

# L layers, M modalities, E experts that one modality may choose from

_ALARM_AFTER = 100  # steps; before, nobody knows
_MOST_NAMED = 8
_KEPT = 0.99  # share of the counts that each step leaves: the last hundred steps or so are what is seen
DOCUMENT = "usage.json"


class ExpertLoad(Periodic):
    """Counts the selections of all ranks; older steps fade, so that it tells how tokens are routed now.

    Every checkpoint has the counts as ``usage.json``, by which compression chooses experts (App. B.4, Eq. 15). Rows get
    ``imbalance/<family>`` and ``imbalance/ranks``, the mean over the layers of the busiest one's tokens over the mean,
    and ``imbalance_worst/...``, that of the worst layer (see ``ringmoe.moe.imbalance``). ``dead_experts`` is how many
    got less than a hundredth of their family's mean over the last hundred steps or so; each is named when it dies.

    Args:
        every: Steps between pictures; there is one more at the end.
        model: The architecture.
        folder: Where pictures go.
        expert_parallel: Ranks that share the experts.
    """

    def __init__(self, every: int, model: RingMoEConfig, folder: Path, *, expert_parallel: int = 1) -> None:
        super().__init__(every)
        self._model = model
        self._folder = folder
        self._expert_parallel = expert_parallel
        self._collaborative_L = torch.tensor([len(model.collaborative_ids(block)) for block in range(model.num_blocks)])
        self._counts_LME = torch.zeros(model.num_blocks, len(model.modalities), model.num_routed, dtype=torch.float64)
        self._tokens_LM = torch.zeros(model.num_blocks, len(model.modalities), dtype=torch.float64)
        self._last_step = 0
        self._dead: list[str] = []

    def on_steps(self, trainer: "Trainer", rows: Sequence[Row]) -> None:
        """Adds the counts of these steps, and to their rows how uneven they are."""
        for row in rows:
            counts_LME = torch.from_numpy(row.arrays["routing_counts_LME"])
            ratios = imbalance(
                counts_LME,
                num_specialised=self._model.num_specialised,
                collaborative_L=self._collaborative_L,
                expert_parallel=self._expert_parallel,
            )
            row.scalars |= {f"imbalance/{name}": ratio_X.mean().item() for name, ratio_X in ratios.items()}
            row.scalars |= {f"imbalance_worst/{name}": ratio_X.max().item() for name, ratio_X in ratios.items()}
            self._counts_LME = _KEPT * self._counts_LME + counts_LME
            self._tokens_LM = _KEPT * self._tokens_LM + torch.from_numpy(row.arrays["tokens_LM"])
        self._last_step = rows[-1].step
        dead = self._find_dead() if self._last_step >= _ALARM_AFTER else []
        for row in rows:
            row.scalars["dead_experts"] = len(dead)
        if new := [name for name in dead if name not in self._dead]:
            more = f" and {len(new) - _MOST_NAMED} more" if len(new) > _MOST_NAMED else ""
            trainer.say(
                f"dead experts: hardly any token of the last hundred steps chose {', '.join(new[:_MOST_NAMED])}{more}. "
                "A larger --model.balance-weight spreads tokens more evenly"
            )
        self._dead = dead

    def _find_dead(self) -> list[str]:
        return dead_experts(
            self._counts_LME,
            modalities=self._model.modalities,
            num_specialised=self._model.num_specialised,
            collaborative=[self._model.collaborative_ids(block) for block in range(self._model.num_blocks)],
        )

    def documents(self) -> dict[str, dict[str, Any]]:
        """The counts as ``usage.json``."""
        usage = Usage.from_counts(
            self._counts_LME,
            self._tokens_LM,
            modalities=self._model.modalities,
            num_specialised=self._model.num_specialised,
            source=f"training up to step {self._last_step}, each step before it counting 1 % less",
        )
        return {DOCUMENT: usage.to_dict()}

    def state(self) -> dict[str, Any]:
        """The counts, unrounded."""
        return {"counts_LME": self._counts_LME.tolist(), "tokens_LM": self._tokens_LM.tolist(), "dead": self._dead}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self._counts_LME = torch.tensor(state["counts_LME"], dtype=torch.float64)
        self._tokens_LM = torch.tensor(state["tokens_LM"], dtype=torch.float64)
        self._dead = state.get("dead", [])

    def act(self, trainer: "Trainer") -> None:
        """Draws who used which expert of late."""
        trainer.flush()
        if not trainer.is_main or not self._model.num_routed:
            return
        figure = expert_load_figure(
            self._counts_LME.numpy(),
            self._model.modalities,
            num_specialised=self._model.num_specialised,
            title=f"expert load, step {trainer.step}",
        )
        save_png(figure, self._folder / f"step-{trainer.step:08d}-expert-load.png")
        trainer.show("expert_load", to_rgb(figure))
