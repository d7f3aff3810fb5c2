"""The routing networks: noisy top-K gates (Eqs. 13-14), one for each modality's specialised experts and one for all.

A gate's values are used as they come out of the softmax, not renormalised over the K that are kept (Eq. 13). Gates are
computed in float32 whatever the type of the tokens: in bfloat16 ties and tiny gradients would decide who is trained.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ringmoe import counter
from ringmoe.batch import Routing
from ringmoe.moe.config import Kind, RMoEConfig

# T tokens of all modalities sorted by modality, D width, M modalities, N experts of one family, E experts that one
# modality may choose from, K experts that a token selects in one family or, in a plan, in both


@dataclass(frozen=True)
class RoutingPlan:
    """Where every token goes and with what weight.

    Attributes:
        ids_TK: (T, K) int64, positions in the layer's expert list (``RMoEConfig.expert_names``), specialised first.
        gates_TK: (T, K) float32, G of Eq. 13 for each of them (carries the gradient of the gates).
        routing: Sums over tokens for balance and pictures.
    """

    ids_TK: Tensor
    gates_TK: Tensor
    routing: Routing


class Gate(nn.Module):
    """One routing network without its top-K: H of Eq. 14.

    Parameters are left empty; ``init_kinds`` says how each is to be filled.
    """

    init_kinds: ClassVar[dict[str, Kind]] = {"gate": "weight", "noise": "zeros"}

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(dim, num_experts))
        self.noise = nn.Parameter(torch.empty(dim, num_experts))

    def forward(self, x_TD: Tensor, noise_TN: Tensor | None = None) -> Tensor:
        """H = softmax(x W_g + noise * softplus(x W_noise)) (Eq. 14).

        Args:
            x_TD: (T, D) tokens in float32 or float64.
            noise_TN: (T, N) standard normal draws; None for no noise. W_noise still gets a gradient then, of zeros.

        Returns:
            (T, N) probabilities in the type of ``x_TD``.
        """
        # one product for both: the tokens are read once
        both_DN = torch.cat((self.gate, self.noise), dim=1).to(x_TD.dtype)
        logits_TN, spread_TN = (x_TD @ both_DN).chunk(2, dim=1)
        return torch.softmax(logits_TN + (0.0 if noise_TN is None else noise_TN) * F.softplus(spread_TN), dim=1)


def select(probs_TN: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The K largest values of each row and their places (Eq. 13): (T, K) weights and (T, K) int64 ids.

    Among equal values the lowest id wins on every device, which ``torch.topk`` does not promise.
    """
    ids_TK = probs_TN.detach().sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    return probs_TN.gather(1, ids_TK), ids_TK


def count(ids: Tensor, num: int) -> Tensor:
    """How often each of ``num`` ids occurs: any shape of int64 -> (num,) int64, without waiting for the device."""
    ids = ids.reshape(-1)
    return ids.new_zeros(num).scatter_add_(0, ids, torch.ones_like(ids))


class Router(nn.Module):
    """All gates of one layer. A family of size 0 has no gate.

    Args:
        config: The layer; it has at least one routed expert.
        layer_index: The layer's number, so that no two layers draw the same noise.
    """

    def __init__(self, config: RMoEConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        modalities = config.modalities if config.num_specialised else ()
        self.specialised = nn.ModuleDict({m: Gate(config.dim, config.num_specialised) for m in modalities})
        self.collaborative = Gate(config.dim, config.num_collaborative) if config.num_collaborative else None
        self._specialised_salt = counter.key("gate noise", layer_index, "specialised")
        self._collaborative_salt = counter.key("gate noise", layer_index, "collaborative")

    def forward(self, x_TD: Tensor, sizes: tuple[int, ...], noise_keys_T: Tensor | None = None) -> RoutingPlan:
        """Routes every token in both families.

        Args:
            x_TD: (T, D) tokens of all modalities, sorted by modality.
            sizes: Tokens of each modality; 0 is allowed.
            noise_keys_T: (T,) int64 random keys, one for each token (see ``ringmoe.counter``); None for no noise.
                They are not looked at in evaluation or when the config turns the noise off.
        """
        # float64 stays float64: references and gradient checks are computed with it
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        with torch.autocast(x_TD.device.type, enabled=False):  # which would have the gates in 8 bits
            return _join(self._plans(x_TD, sizes, noise_keys_T))

    def _plans(self, x_TD: Tensor, sizes: tuple[int, ...], noise_keys_T: Tensor | None) -> list[RoutingPlan]:
        """The plan of each family."""
        plans, num, modalities = [], self.config.num_specialised, len(sizes)
        if self.specialised:
            noise_TN = self._noise(x_TD, noise_keys_T, self._specialised_salt, num)
            noises = [None] * modalities if noise_TN is None else _by_modality(noise_TN, sizes)
            slices = zip(self.specialised.values(), _by_modality(x_TD, sizes), noises, strict=True)
            probs_TN = torch.cat([gate(slice_TD, slice_TN) for gate, slice_TD, slice_TN in slices])
            plans.append(_plan(probs_TN, sizes, [m * num for m in range(modalities)], self.config.top_k))
        if self.collaborative is not None:
            noise_TN = self._noise(x_TD, noise_keys_T, self._collaborative_salt, self.config.num_collaborative)
            probs_TN = self.collaborative(x_TD, noise_TN)
            plans.append(_plan(probs_TN, sizes, [modalities * num] * modalities, self.config.top_k))
        return plans

    def _noise(self, x_TD: Tensor, keys_T: Tensor | None, salt: int, num: int) -> Tensor | None:
        """(T, N) draws of N(0, 1); None without noise."""
        if keys_T is None or not (self.training and self.config.gate_noise):
            return None
        return counter.normal(counter.mix(keys_T, salt), num).to(x_TD.dtype)


def nothing_routed(sizes: tuple[int, ...], device: torch.device) -> Routing:
    """The routing of a layer without routed experts: E = 0 columns."""
    none_ME = torch.zeros(len(sizes), 0, device=device)
    return Routing(none_ME, none_ME, _tokens(sizes, device))


def _plan(probs_TN: Tensor, sizes: tuple[int, ...], first_M: list[int], top_k: int) -> RoutingPlan:
    """The plan of one family, whose expert 0 stands at place ``first_M[m]`` of the expert list for modality m."""
    gates_TK, ids_TK = select(probs_TN, top_k)
    ids_by_modality = _by_modality(ids_TK, sizes)
    counts_MN = torch.stack([count(ids, probs_TN.shape[1]) for ids in ids_by_modality])
    probs_MN = torch.stack([probs.sum(0) for probs in _by_modality(probs_TN, sizes)])
    ids_TK = torch.cat([ids + first for ids, first in zip(ids_by_modality, first_M, strict=True)])
    return RoutingPlan(ids_TK, gates_TK, Routing(counts_MN.float(), probs_MN, _tokens(sizes, probs_TN.device)))


def _join(plans: list[RoutingPlan]) -> RoutingPlan:
    """The plans of several families side by side."""
    counts, probs, tokens = zip(*(plan.routing for plan in plans), strict=True)
    return RoutingPlan(
        torch.cat([plan.ids_TK for plan in plans], dim=1),
        torch.cat([plan.gates_TK for plan in plans], dim=1),
        Routing(torch.cat(counts, dim=1), torch.cat(probs, dim=1), tokens[0]),
    )


def _by_modality(values_T: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The rows of each modality; views."""
    return torch.split(values_T, list(sizes))


def _tokens(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The sizes as (M,) float32, filled where the tokens are: copying them there would wait for the device."""
    return torch.stack([torch.full((), size, dtype=torch.float32, device=device) for size in sizes])
