"""Times the dense encoder, forward and backward, beside timm's SwinV2 with the same weights.

    python benchmarks/encoder.py

SwinV2-T at 192 pixels. Both see the same images, in turns, on one thread; the times are CPU times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from contestants import TYPES
from harness import Contestant, Found, Seats, claim, collect, progress
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.export import to_timm
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries
from ringmoe.testing.batches import random_images

# B images, D width, H x W tokens of the last stage

FAMILY = "Dense encoder"


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        dtype: fp32 or bf16.
        dim: Width of the first stage; it doubles from one to the next.
        depths: Blocks of each stage.
        size: Pixels along each side.
        images: Images of a step.
    """

    dtype: str
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    size: int = 192
    images: int = 4

    def __str__(self) -> str:
        """The setting in words."""
        return f"{self.dtype}, d {self.dim}, depths {self.depths}, {self.images} images of {self.size} pixels"


SETTINGS = [Setting("fp32"), Setting("bf16")]


def seat(of: Setting, name: str) -> Contestant:
    """``ours`` or ``timm``.

    Raises:
        RuntimeError: The two do not agree: then there is nothing to compare.
    """
    steps = both(of)
    if not torch.allclose(steps["ours"]().float(), steps["timm"]().float(), rtol=5e-2, atol=5e-2):
        raise RuntimeError("timm's model computes something else than ours")
    return Contestant(steps[name])


def both(of: Setting) -> dict[str, Callable[[], Tensor]]:
    """Name to forward and backward, which returns the (B, D, H, W) map of the last stage."""
    dims = tuple(of.dim * 2**stage for stage in range(len(of.depths)))
    config = RingMoEConfig(modalities=("opt",), image_size=of.size, depths=of.depths, dims=dims).dense()
    ours = RingMoE(config)
    initialise(ours, 0)
    ours.positions.data.zero_()  # timm has none
    theirs = SwinTransformerV2(
        img_size=of.size,
        embed_dim=of.dim,
        depths=config.depths,
        num_heads=[dim // config.head_dim for dim in dims],
        window_size=config.window,
        num_classes=0,
        drop_path_rate=0.0,
    )
    state = {entry.name: entry.tensor for entry in canonical_entries(ours)}
    theirs.load_state_dict(to_timm(state, config, "opt"))
    images, dtype = random_images("opt", of.images, of.size), TYPES[of.dtype]
    pixels_BCHW = images.pixels_BCHW.to(dtype)
    return {
        "ours": _step(ours.to(dtype), lambda: ours.features(images, "opt")[-1]),
        "timm": _step(theirs.to(dtype), lambda: theirs.forward_features(pixels_BCHW).permute(0, 3, 1, 2)),
    }


def claims() -> Iterator[Found]:
    """All claims of the family."""
    with Seats() as seats:
        for of in progress(SETTINGS, FAMILY):
            seconds = seats.take_turns({name: partial(seat, of, name) for name in ("ours", "timm")}, 3)
            yield claim("timm / ours", str(of), seconds["ours"], seconds["timm"], ">= 1")


def _step(module: nn.Module, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def step() -> Tensor:
        module.zero_grad(set_to_none=True)
        z_BDHW = forward()
        torch.autograd.backward(z_BDHW.float().square().mean())
        return z_BDHW.detach()

    return step


if __name__ == "__main__":
    collect(claims())
