"""The RMoE layer and what it is compared with: the plain loop over experts, DeepSpeed's MoE, and the bare products."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from harness import Contestant
from torch import Tensor, nn

from ringmoe.moe import ExpertParallel, RMoEConfig, RMoELayer
from ringmoe.moe.experts import recompute_hidden
from ringmoe.moe.router import Gate, RoutingPlan
from ringmoe.naming import canonical_entries
from ringmoe.testing.ranks import free_port

# T tokens, D width, F hidden width, K experts that a token selects in each family, N rows (tokens times experts)

MODALITIES = ("opt", "ms", "sar_l1", "sar_l2")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Cell:
    """One setting of the layer.

    Attributes:
        dtype: fp32 or bf16.
        dim: Width of a token; experts are four times as wide.
        tokens: Tokens of a step.
        top_k: Experts of each family for a token.
        mixed: Four modalities in shares 4:2:1:1; otherwise a model of one.
    """

    dtype: str
    dim: int
    tokens: int
    top_k: int = 1
    mixed: bool = True

    def __str__(self) -> str:
        """The setting in words."""
        shares = "mixed" if self.mixed else "one modality"
        return f"{self.dtype}, d {self.dim}, T {self.tokens}, K {self.top_k}, {shares}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each modality."""
        eighth = self.tokens // 8
        return (self.tokens - 4 * eighth, 2 * eighth, eighth, eighth) if self.mixed else (self.tokens,)

    @property
    def config(self) -> RMoEConfig:
        """The layer."""
        return RMoEConfig(
            dim=self.dim,
            hidden=4 * self.dim,
            modalities=MODALITIES if self.mixed else MODALITIES[:1],
            num_specialised=4,
            collaborative_ids=(0, 1, 2, 3),
            top_k=self.top_k,
        )


class PlainLoop(nn.Module):
    """The layer as most people would write it: two linear layers for each expert, one pass over the tokens for it."""

    def __init__(self, layer: RMoELayer) -> None:
        super().__init__()
        config = layer.config
        self.router, self.shared = layer.router, _linear(layer, "shared")
        self.experts = nn.ModuleList(_linear(layer, name) for name in config.expert_names)

    def forward(self, x_TD: Tensor, sizes: tuple[int, ...], keys_T: Tensor | None) -> tuple[Tensor, RoutingPlan]:
        """(T, D) in and out, and where the tokens went."""
        assert self.router is not None
        plan = self.router(x_TD, sizes, keys_T)
        y_TD: Tensor = self.shared(x_TD)
        for number, expert in enumerate(self.experts):
            token_R, k_R = (plan.ids_TK == number).nonzero(as_tuple=True)
            weighted_RD = expert(x_TD[token_R]) * plan.gates_TK[token_R, k_R].unsqueeze(1)
            y_TD = y_TD.index_add(0, token_R, weighted_RD.to(y_TD.dtype))
        return y_TD, plan


class DeepSpeedLayers(nn.Module):
    """One DeepSpeed MoE for each modality, a collaborative one and a shared FFN; no token is dropped, no noise."""

    def __init__(self, layer: RMoELayer) -> None:
        super().__init__()
        import deepspeed

        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
            deepspeed.ops.__compatible_ops__ = {}  # or it would compile what is not used here
            deepspeed.init_distributed(verbose=False)
        config, router = layer.config, layer.router
        assert router is not None
        names = config.expert_names
        families = [names[4 * m : 4 * m + 4] for m in range(len(names) // 4)]
        gates = [*(_logits_of(gate) for gate in router.specialised.values()), _logits_of(router.collaborative)]
        *specialised, collaborative = (_moe(layer, *pair) for pair in zip(families, gates, strict=True))
        self.specialised, self.collaborative = nn.ModuleList(specialised), collaborative
        self.shared = _linear(layer, "shared")

    def forward(self, x_TD: Tensor, sizes: tuple[int, ...], _: Tensor | None) -> tuple[Tensor]:
        """(T, D) in and out; the keys of noise are not looked at."""
        parts = zip(self.specialised, torch.split(x_TD, list(sizes)), strict=True)
        specialised_TD = torch.cat([moe(part_TD)[0] for moe, part_TD in parts])
        return (specialised_TD + self.collaborative(x_TD)[0] + self.shared(x_TD),)


def _logits_of(gate: nn.Module | None) -> Tensor:
    """(D, E) the matrix of a gate."""
    assert isinstance(gate, Gate)
    return gate.gate


_NO_CHANCE = {"use_rts": False, "top2_2nd_expert_sampling": False}  # what nobody here wants costs time


def _moe(layer: RMoELayer, names: tuple[str, ...], gate_DE: Tensor) -> nn.Module:
    """DeepSpeed's MoE with the weights of one of our families."""
    from deepspeed.moe.layer import MoE

    config, template = layer.config, _linear(layer, names[0])
    moe = MoE(config.dim, template, len(names), k=config.top_k, drop_tokens=False, min_capacity=0, **_NO_CHANCE)
    moe.set_deepspeed_parallelism()
    with torch.no_grad():
        moe.deepspeed_moe.gate.wg.weight.copy_(gate_DE.t())
    for expert, name in zip(moe.deepspeed_moe.experts.deepspeed_experts, names, strict=True):
        expert.load_state_dict(_linear(layer, name).state_dict())
    found: nn.Module = moe
    return found


def _linear(layer: RMoELayer, name: str) -> nn.Sequential:
    """A copy of one expert of the layer as two linear layers, whose weights lie transposed."""
    dim, hidden = layer.config.dim, layer.config.hidden
    linear = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
    tensors = {entry.name: entry.tensor for entry in canonical_entries(layer)}
    with torch.no_grad():
        for parameter, own in zip(linear.parameters(), ("w1", "b1", "w2", "b2"), strict=True):
            parameter.copy_(tensors[f"{name}.{own}"].t())
    return linear


class Limit:
    """The six dense products of as many operations as the layer's active experts, into memory that is there already.

    Args:
        rows: Rows N: tokens times active experts.
        dim: Width.
        dtype: Of all matrices.
    """

    def __init__(self, rows: int, dim: int, dtype: torch.dtype) -> None:
        self.x_ND, self.dy_ND, self.dx_ND, self.y_ND = (torch.randn(rows, dim).to(dtype) for _ in range(4))
        self.h_NF, self.dh_NF = (torch.randn(rows, 4 * dim).to(dtype) for _ in range(2))
        self.w1_DF, self.dw1_DF = (torch.randn(dim, 4 * dim).to(dtype) for _ in range(2))
        self.w2_FD, self.dw2_FD = (torch.randn(4 * dim, dim).to(dtype) for _ in range(2))

    def __call__(self) -> None:
        """Multiplies."""
        torch.mm(self.x_ND, self.w1_DF, out=self.h_NF)
        torch.mm(self.h_NF, self.w2_FD, out=self.y_ND)
        torch.mm(self.dy_ND, self.w2_FD.t(), out=self.dh_NF)
        torch.mm(self.h_NF.t(), self.dy_ND, out=self.dw2_FD)
        torch.mm(self.dh_NF, self.w1_DF.t(), out=self.dx_ND)
        torch.mm(self.x_ND.t(), self.dh_NF, out=self.dw1_DF)


class Contest:
    """One cell's weights and tokens, the same in every process, and its contestants.

    Args:
        cell: The setting.
        noise: Whether our gates and the plain loop's draw noise, as in training; DeepSpeed's draw none.
    """

    def __init__(self, cell: Cell, *, noise: bool = True) -> None:
        torch.manual_seed(0)
        self.cell, self.dtype, self.noise = cell, TYPES[cell.dtype], noise
        self.layer = RMoELayer(cell.config, 0, ExpertParallel())
        for parameter in self.layer.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.draw(0)

    def draw(self, turn: int) -> None:
        """New tokens: as in training, no two steps route alike."""
        generator = torch.Generator().manual_seed(turn)
        self.x_TD = torch.randn(self.cell.tokens, self.cell.dim, generator=generator).to(self.dtype)
        self.keys_T = torch.arange(self.cell.tokens) + turn * self.cell.tokens if self.noise else None

    def contestant(self, name: str) -> Contestant:
        """``ours``, ``recomputed``, ``plain loop``, ``DeepSpeed`` or ``limit``.

        Raises:
            RuntimeError: It computes something else than our layer: then there is nothing to compare.
        """
        if name == "limit":
            config = self.cell.config
            return Contestant(Limit(self.cell.tokens * (2 * config.top_k + 1), config.dim, self.dtype))
        step = self._step(name)
        # with noise DeepSpeed, and with two experts its other gates, give something else
        if name == "plain loop" or (name == "DeepSpeed" and not self.noise and self.cell.top_k == 1):
            if not torch.allclose(step().float(), self._step("ours")().float(), rtol=2e-2, atol=2e-2):
                raise RuntimeError(f"{self.cell}: {name} computes something else than our layer")
            self.layer.zero_grad(set_to_none=True)
        return Contestant(step, self.draw)

    def _step(self, name: str) -> Callable[[], Tensor]:
        """Forward and backward; returns the output."""
        module: nn.Module = self.layer
        if name in ("plain loop", "DeepSpeed"):
            module = PlainLoop(self.layer) if name == "plain loop" else DeepSpeedLayers(self.layer)
        elif name == "recomputed":
            recompute_hidden(module)
        module.to(self.dtype)

        def step() -> Tensor:
            module.zero_grad(set_to_none=True)
            y_TD: Tensor = module(self.x_TD.detach().requires_grad_(), self.cell.sizes, self.keys_T)[0]
            torch.autograd.backward(y_TD, self.x_TD)
            return y_TD.detach()

        return step


def seat(cell: Cell, name: str) -> Contestant:
    """A contestant by name, in the process that calls."""
    return Contest(cell).contestant(name)


def peers(*others: str) -> list[str]:
    """Names of ours, of others, and of DeepSpeed where it is installed."""
    return ["ours", *others, *(["DeepSpeed"] if importlib.util.find_spec("deepspeed") else [])]
