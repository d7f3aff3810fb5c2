"""Times one RMoE layer, forward and backward, beside a plain loop over experts and beside DeepSpeed's MoE.

    python benchmarks/moe_layer.py --dim 256 --tokens 2048 --dtype float32 --keep-memory

All of them compute Eq. 3 on the same mixed tokens in one process, in turns (A B C A B C), on one thread; the times are
CPU times, so that a busy machine disturbs them less. Printed are medians, quartiles and the ratio of each peer's time
to ours (above 1: ours is faster). Without DeepSpeed its row is left out.

Stacked gradients are large blocks, which glibc gives back to the kernel when they are freed: each step then pays for
fresh pages again, and one module for each expert does not. ``--keep-memory`` keeps freed blocks in the process, for
all of them.
"""

import argparse
import ctypes
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ringmoe import counter
from ringmoe.moe import ExpertParallel, RMoEConfig, RMoELayer
from ringmoe.moe.experts import Expert
from ringmoe.naming import canonical_entries
from ringmoe.testing.ranks import free_port

# T tokens, D width, K experts that a token selects

MODALITIES = ("opt", "ms", "sar_l1", "sar_l2")
Forward = Callable[[Tensor], Tensor]


class PlainLoop(nn.Module):
    """The same layer as most people would write it: one module for each expert, one pass over the tokens for each."""

    def __init__(self, layer: RMoELayer) -> None:
        super().__init__()
        config = layer.config
        self.router, self.shared = layer.router, layer.shared
        self.experts = nn.ModuleList(Expert(config.dim, config.hidden) for _ in config.expert_names)
        experts = dict(zip(config.expert_names, self.experts, strict=True))
        for entry in canonical_entries(layer):
            name, _, parameter = entry.name.rpartition(".")
            if name in experts:
                experts[name].get_parameter(parameter).data.copy_(entry.tensor)

    def forward(self, x_TD: Tensor, sizes: tuple[int, ...], keys_T: Tensor) -> Tensor:
        """(T, D) in and out."""
        assert self.router is not None
        assert self.shared is not None
        plan = self.router(x_TD, sizes, keys_T)
        y_TD: Tensor = self.shared(x_TD)
        for number, expert in enumerate(self.experts):
            token_R, k_R = (plan.ids_TK == number).nonzero(as_tuple=True)
            weighted_RD = expert(x_TD[token_R]) * plan.gates_TK[token_R, k_R].unsqueeze(1)
            y_TD = y_TD.index_add(0, token_R, weighted_RD.to(y_TD.dtype))
        return y_TD


class DeepSpeedLayers(nn.Module):
    """One DeepSpeed MoE for each modality, a collaborative one and a shared FFN; no token is dropped, no noise."""

    def __init__(self, config: RMoEConfig) -> None:
        super().__init__()
        import deepspeed

        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
        deepspeed.init_distributed(verbose=False)
        self.specialised = nn.ModuleList(self._moe(config, config.num_specialised) for _ in config.modalities)
        self.collaborative = self._moe(config, config.num_collaborative)
        self.shared = self._expert(config)

    def forward(self, x_TD: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """(T, D) in and out."""
        parts = zip(self.specialised, torch.split(x_TD, list(sizes)), strict=True)
        specialised_TD = torch.cat([moe(part_TD)[0] for moe, part_TD in parts])
        y_TD: Tensor = specialised_TD + self.collaborative(x_TD)[0] + self.shared(x_TD)
        return y_TD

    @staticmethod
    def _expert(config: RMoEConfig) -> nn.Module:
        return nn.Sequential(nn.Linear(config.dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim))

    def _moe(self, config: RMoEConfig, num_experts: int) -> nn.Module:
        from deepspeed.moe.layer import MoE

        expert = self._expert(config)
        moe = MoE(config.dim, expert, num_experts, k=config.top_k, drop_tokens=False, min_capacity=0)
        moe.set_deepspeed_parallelism()
        layer: nn.Module = moe
        return layer


def build_layer(args: argparse.Namespace) -> RMoELayer:
    """Our layer with random weights of the usual size."""
    config = RMoEConfig(
        dim=args.dim,
        hidden=4 * args.dim,
        modalities=MODALITIES,
        num_specialised=4,
        collaborative_ids=(0, 1, 2, 3),
        top_k=args.top_k,
    )
    layer = RMoELayer(config, 0, ExpertParallel())
    for entry in canonical_entries(layer):
        keys = counter.mix(torch.arange(entry.tensor.numel()), counter.key("benchmark", entry.name))
        entry.tensor.copy_(0.02 * counter.normal(keys, 1).view(entry.tensor.shape))
    return layer


def contestants(args: argparse.Namespace) -> dict[str, tuple[nn.Module, Forward]]:
    """Name to module (for its gradients) and forward."""
    sizes = (args.tokens // 2, args.tokens // 4, args.tokens // 8, args.tokens - args.tokens // 8 * 7)
    keys_T = torch.arange(args.tokens)
    layer = build_layer(args)
    found: dict[str, tuple[nn.Module, Forward]] = {"ringmoe": (layer, lambda x_TD: layer(x_TD, sizes, keys_T)[0])}
    loop = PlainLoop(layer)
    found["plain loop"] = (loop, lambda x_TD: loop(x_TD, sizes, keys_T))
    if importlib.util.find_spec("deepspeed"):
        peer = DeepSpeedLayers(layer.config)
        found["deepspeed"] = (peer, lambda x_TD: peer(x_TD, sizes))
    for module, _ in found.values():
        module.to(getattr(torch, args.dtype))
    return found


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of forward and backward of each contestant, in turns; the first turn is left out.

    Raises:
        RuntimeError: The plain loop and our layer do not agree: then there is nothing to compare.
    """
    torch.manual_seed(0)
    x_TD = torch.randn(args.tokens, args.dim, dtype=getattr(torch, args.dtype))
    seconds: dict[str, list[float]] = {}
    results: dict[str, Tensor] = {}
    found = contestants(args)
    for turn in range(args.rounds + 1):
        for name, (module, forward) in found.items():
            inputs_TD = x_TD.clone().requires_grad_()
            module.zero_grad(set_to_none=True)
            start = time.process_time()
            y_TD = forward(inputs_TD)
            torch.autograd.backward(y_TD, x_TD)
            if turn:
                seconds.setdefault(name, []).append(time.process_time() - start)
            results[name] = y_TD.detach().float()
    if not torch.allclose(results["ringmoe"], results["plain loop"], rtol=2e-2, atol=2e-2):
        raise RuntimeError("the plain loop computes something else than the layer")
    return seconds


def keep_freed_memory() -> None:
    """Tells glibc not to give memory back to the kernel: no mmap for large blocks, no trimming up to 2 GiB."""
    libc = ctypes.CDLL(None)
    m_mmap_max, m_trim_threshold = -4, -1
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="Times one RMoE layer beside its peers.")
    parser.add_argument("--dim", type=int, default=256, help="width of a token; experts are four times as wide")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of all four modalities, in shares 4:2:1:1")
    parser.add_argument("--top-k", type=int, default=1, choices=(1, 2), help="experts of each family for a token")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=9, help="turns that count")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory in the process (glibc)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep_memory:
        keep_freed_memory()
    seconds = measure(args)
    ours = statistics.median(seconds["ringmoe"])
    print(f"dim {args.dim}, tokens {args.tokens}, K {args.top_k}, {args.dtype}, {args.rounds} rounds, 1 thread")
    print(f"{'':<12}{'median ms':>10}{'quartiles ms':>18}{'ratio to ours':>15}")
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:<12}{1e3 * median:>10.1f}{f'{1e3 * low:.1f}-{1e3 * high:.1f}':>18}{median / ours:>15.2f}")


if __name__ == "__main__":
    main()
