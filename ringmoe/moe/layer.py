"""The RMoE layer (Section 3.2.1): specialised, collaborative and shared experts in place of a block's FFN."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ringmoe.batch import Routing
from ringmoe.moe.config import RMoEConfig
from ringmoe.moe.dispatch import make_dispatcher
from ringmoe.moe.experts import Expert, Experts
from ringmoe.moe.ffn import autocast
from ringmoe.moe.parallel import ExpertParallel
from ringmoe.moe.router import Router, nothing_routed

# T tokens of all modalities sorted by modality, D width, K experts that a token selects in both families, R rows
# (a token once for each of its experts), E experts on this rank


class RMoELayer(nn.Module):
    """y = sum_k G^S_k E^S_k(x) + sum_k G^C_k E^C_k(x) + E^Shared(x) (Eq. 3). A family of size 0 leaves its term out.

    The forward is a pure function of its inputs and parameters, so that it may be recomputed in the backward pass.

    Args:
        config: The experts and how they are chosen.
        layer_index: The layer's number in the model.
        parallel: The ranks that share the experts; the same instance for all layers.

    Raises:
        ConfigError: The experts cannot be spread evenly over the ranks.
    """

    def __init__(self, config: RMoEConfig, layer_index: int, parallel: ExpertParallel) -> None:
        super().__init__()
        parallel.check(config, where=f"RMoE layer {layer_index}")
        self.config = config
        self.shared = Expert(config.dim, config.hidden) if config.shared else None
        self.router = Router(config, layer_index) if config.num_routed else None
        local_names = parallel.local(config.expert_names)
        self.experts = Experts(config.dim, config.hidden, local_names) if config.num_routed else None
        self.dispatcher = make_dispatcher(config.num_routed, parallel)
        # where rows travel, there and back, the shared expert works half of the tokens each time
        self._num_parts = 1 if parallel.size == 1 else 2

    def forward(
        self, x_TD: Tensor, sizes: tuple[int, ...], noise_keys_T: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """Sends every token through its experts: route, dispatch, compute, combine.

        Args:
            x_TD: (T, D) tokens of all modalities, sorted by modality.
            sizes: Tokens of each modality; 0 is allowed.
            noise_keys_T: (T,) int64 random keys, one for each token, from which the gates draw their noise; None for
                no noise.

        Returns:
            y_TD: (T, D) in the type of ``x_TD``.
            routing: What the gates decided, for the balance loss and pictures.

        Raises:
            ValueError: The sizes do not fit the modalities or the tokens.
        """
        if len(sizes) != len(self.config.modalities) or sum(sizes) != len(x_TD):
            raise ValueError(f"{len(x_TD)} tokens of {self.config.modalities}, but the sizes given are {sizes}")
        if self.router is None or self.experts is None:
            assert self.shared is not None, "a config without any expert is refused"
            return self.shared(x_TD), nothing_routed(sizes, x_TD.device)
        # 1. route: each token picks specialised experts of its modality and collaborative ones (Eqs. 13-14)
        plan = self.router(x_TD, sizes, noise_keys_T)
        x_TD = autocast(x_TD)  # rows travel as they are computed with
        # 2. dispatch: rows set out for their experts, and the shared expert works while they travel
        rows, sent = self.dispatcher.dispatch(x_TD, plan.ids_TK, plan.gates_TK)
        parts = x_TD.tensor_split(self._num_parts) if self._num_parts > 1 else (x_TD,)
        shared = self._shared(parts[:1])
        # 3. compute: every expert on its own rows, times their gates
        y_RD = self.experts(*sent.receive(rows), sent.counts_E)
        # 4. combine: outputs travel back, while the shared expert does the rest; all are added up (Eqs. 1-3)
        y_RD = self.dispatcher.give_back(y_RD, sent)
        shared += self._shared(parts[1:])
        return self.dispatcher.combine(y_RD, sent, _joined(shared)), plan.routing

    def _shared(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The shared expert's outputs for some of the tokens; none without it."""
        return [] if self.shared is None else [self.shared(part_TD) for part_TD in parts]


def _joined(parts: list[Tensor]) -> Tensor | None:
    if len(parts) > 1:
        return torch.cat(parts)
    return parts[0] if parts else None
