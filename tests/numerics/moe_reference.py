"""The RMoE layer as the paper writes it: float64, one token after the other, no sorting, no stacking."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ringmoe import counter
from ringmoe.moe import RMoEConfig, RMoELayer
from ringmoe.naming import canonical_entries


def fill(layer: RMoELayer, scale: float = 0.4) -> RMoELayer:
    """Random weights by global name, noise and biases included, so that every term of every equation matters."""
    for entry in canonical_entries(layer):
        keys = counter.mix(torch.arange(entry.tensor.numel()), counter.key("test", entry.name))
        entry.tensor.copy_(scale * counter.normal(keys, 1).view(entry.tensor.shape))
    return layer


def weights_of(layer: RMoELayer) -> dict[str, Tensor]:
    """Copies of all parameters by global name, float64 and ready for gradients."""
    return {e.name: e.tensor.detach().double().clone().requires_grad_() for e in canonical_entries(layer)}


def gradients_of(layer: RMoELayer) -> dict[str, Tensor]:
    """Gradients by global name; every parameter must have one."""
    grads = {}
    for entry in canonical_entries(layer):
        assert entry.parameter.grad is not None, f"{entry.name} has no gradient"
        grads[entry.name] = entry.parameter.grad if entry.index is None else entry.parameter.grad[entry.index]
    return grads


@dataclass
class Reference:
    y_TD: Tensor
    collaborative: Tensor
    specialised_M: Tensor
    counts_ME: Tensor


def expert(w: dict[str, Tensor], name: str, x_D: Tensor) -> Tensor:
    hidden = x_D @ w[f"{name}.w1"] + w[f"{name}.b1"]
    return (0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))) @ w[f"{name}.w2"] + w[f"{name}.b2"]


def gate(w: dict[str, Tensor], name: str, x_D: Tensor, noise_N: Tensor) -> Tensor:
    """H of one token (Eq. 14)."""
    spread = torch.log(1 + torch.exp(x_D @ w[f"{name}.noise"]))
    exps = torch.exp(x_D @ w[f"{name}.gate"] + noise_N * spread)
    return exps / exps.sum()


def top_k(h_N: Tensor, k: int) -> list[int]:
    """The experts that Eq. 13 keeps; the lowest id wins a tie."""
    return sorted(range(len(h_N)), key=lambda e: (-h_N[e].item(), e))[:k]


def run(
    w: dict[str, Tensor], c: RMoEConfig, x_TD: Tensor, sizes: tuple[int, ...], keys_T: Tensor | None, layer_index: int
) -> Reference:
    """Eqs. 1-3 and 12 for every token, then Eqs. 8-10 over the choices that were made."""
    n_s, n_c = c.num_specialised, c.num_collaborative
    draws = {"specialised": torch.zeros(len(x_TD), n_s), "collaborative": torch.zeros(len(x_TD), n_c)}
    for family, zeros_TN in draws.items():
        if keys_T is not None and zeros_TN.shape[1]:
            salted_T = counter.mix(keys_T, counter.key("gate noise", layer_index, family))
            draws[family] = counter.normal(salted_T, zeros_TN.shape[1])
    rows, chosen, full = [], [], []
    for t, m in enumerate(m for m, size in enumerate(sizes) for _ in range(size)):
        x_D = x_TD[t]
        y_D = expert(w, "shared", x_D) if c.shared else torch.zeros_like(x_D)
        families = [
            ("specialised", f"specialised.{c.modalities[m]}", range(n_s)),
            ("collaborative", "collaborative", c.collaborative_ids),
        ]
        column = 0
        for family, name, ids in families:
            if not ids:
                continue
            h_N = gate(w, f"router.{name}", x_D, draws[family][t].double())
            for k in top_k(h_N, c.top_k):
                y_D = y_D + h_N[k] * expert(w, f"{name}.{ids[k]}", x_D)
                chosen.append((m, column + k))
            full.extend((m, column + k, h_N[k]) for k in range(len(ids)))
            column += len(ids)
        rows.append(y_D)
    return _with_balance(torch.stack(rows), chosen, full, sizes, n_s, n_c)


def _with_balance(y_TD, chosen, full, sizes, n_s, n_c) -> Reference:
    def loss(modalities: list[int], columns: range) -> Tensor:
        tokens = sum(sizes[m] for m in modalities)
        total = torch.zeros((), dtype=torch.float64)
        for k in columns if tokens else ():
            f = sum(1 for m, e in chosen if m in modalities and e == k) / tokens
            p = sum(h for m, e, h in full if m in modalities and e == k) / tokens
            total = total + len(columns) * f * p
        return total

    everyone = list(range(len(sizes)))
    counts = torch.zeros(len(sizes), n_s + n_c)
    for m, e in chosen:
        counts[m, e] += 1
    return Reference(
        y_TD=y_TD,
        collaborative=loss(everyone, range(n_s, n_s + n_c)),
        specialised_M=torch.stack([loss([m], range(n_s)) for m in everyone]),
        counts_ME=counts,
    )
