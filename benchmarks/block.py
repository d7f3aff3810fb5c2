"""A whole block, SwinV2 attention and RMoE layer, forward and backward: its share of the machine's matrix rate.

    python benchmarks/block.py

Two blocks, one with shifted windows, beside timm's two dense SwinV2 blocks of the same width on the same map, and
beside products of 1024 x 1024 matrices, in turns, on one thread, CPU time, bfloat16. A rate is the operations that the
model needs, three times those of the forward pass, over the time; our blocks need more: three experts for each token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from contestants import MODALITIES, TYPES
from harness import Contestant, Found, Profile, Seats, claim, collect, one_thread, shares_of
from moe_profile import OPERATORS
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoEBlock
from ringmoe.moe import ExpertParallel

# B images, H x W tokens, D width, T all tokens

FAMILY = "Whole block"
_SIDE, _PRODUCTS = 1024, 32  # of the matrices for the machine's rate; how many of them a turn multiplies
_OPERATORS = OPERATORS | {
    "softmax and norms": (
        *("_softmax", "_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward"),
        *("linalg_vector_norm", "div", "clamp", "clamp_min"),
    )
}


@dataclass(frozen=True)
class Map:
    """One setting.

    Attributes:
        dim: Width.
        side: Tokens along each side of an image.
        images: Images of a step, equally many of each modality.
        window: Tokens along each side of a window.
        dtype: fp32 or bf16.
    """

    dim: int
    side: int
    images: int
    window: int = 12
    dtype: str = "bf16"

    def __str__(self) -> str:
        """The setting in words."""
        return f"{self.dtype}, d {self.dim}, {self.images} x {self.side} x {self.side} tokens, windows of {self.window}"

    def flops(self, experts: int) -> int:
        """Operations of forward and backward of two blocks whose tokens go through so many experts each."""
        tokens = self.images * self.side**2
        return 2 * 3 * 2 * tokens * self.dim * (4 * self.dim + 2 * self.window**2 + 8 * self.dim * experts)


MAP = Map(896, 24, 8)


def ours(of: Map) -> Contestant:
    """Forward and backward of our two blocks."""
    side = 4 * of.side
    config = RingMoEConfig(image_size=side, depths=(2,), dims=(of.dim,), window=of.window, mask_unit=4)
    blocks = nn.ModuleList(RingMoEBlock(config, index, ExpertParallel()) for index in range(2))
    tokens = of.images * of.side**2
    sizes, keys_T = (tokens // len(MODALITIES),) * len(MODALITIES), torch.arange(tokens)

    def forward(x_BHWD: Tensor) -> Tensor:
        for block in blocks:
            x_BHWD, *_ = block(x_BHWD, sizes, keys_T)
        return x_BHWD

    return _step(blocks, forward, of)


def timm(of: Map) -> Contestant:
    """Forward and backward of timm's two blocks."""
    size = (of.side, of.side)
    blocks = nn.Sequential(
        *(
            SwinTransformerV2Block(of.dim, size, of.dim // 32, window_size=of.window, shift_size=shift)
            for shift in (0, of.window // 2)
        )
    )
    return _step(blocks, blocks, of)


def products(of: Map) -> Contestant:
    """Products of square matrices, in whose rate the machine's is measured."""
    a_NN = torch.randn(_SIDE, _SIDE).to(TYPES[of.dtype])
    product_NN = torch.empty_like(a_NN)

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            torch.mm(a_NN, a_NN, out=product_NN)

    return Contestant(multiply)


def claims() -> Iterator[Found]:
    """All claims of the family."""
    one_thread()
    ways = {"ours": partial(ours, MAP), "timm": partial(timm, MAP), "products": partial(products, MAP)}
    with Seats() as seats:
        seconds = seats.take_turns(ways, 4)
    flops = {"ours": MAP.flops(3), "timm": MAP.flops(1), "products": 2 * _SIDE**3 * _PRODUCTS}
    rates = {name: [flops[name] / spent / 1e9 for spent in seconds[name]] for name in ways}
    yield claim("ours / matrix rate", str(MAP), rates["ours"], rates["products"], ">= 0.35", unit="GFLOP/s")
    yield claim("ours / timm's dense blocks", str(MAP), rates["ours"], rates["timm"], ">= 1", unit="GFLOP/s")
    yield Profile(name="our blocks", setting=str(MAP), shares=shares_of(ours(MAP).step, _OPERATORS))


def _step(module: nn.Module, forward: Callable[[Tensor], Tensor], of: Map) -> Contestant:
    dtype = TYPES[of.dtype]
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    module.to(dtype)
    x_BHWD = torch.randn(of.images, of.side, of.side, of.dim).to(dtype)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        torch.autograd.backward(forward(x_BHWD.detach().requires_grad_()), x_BHWD)

    return Contestant(step)


if __name__ == "__main__":
    collect(claims())
