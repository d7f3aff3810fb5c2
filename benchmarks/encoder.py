"""Times the dense encoder, forward and backward, beside timm's SwinV2 with the same weights.

    python benchmarks/encoder.py --dim 96 --depths 2 2 6 2 --dtype float32

Both see the same images in one process, in turns, on one thread; the times are CPU times, so that a busy machine
disturbs them less. Printed are medians, quartiles and the ratio of timm's time to ours (above 1: ours is faster).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from ringmoe.layers.init import initialise
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.export import to_timm
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.naming import canonical_entries
from ringmoe.testing.batches import random_images

# B images, D width, H x W tokens of the last stage

Forward = Callable[[], Tensor]


def contestants(args: argparse.Namespace) -> dict[str, tuple[nn.Module, Forward]]:
    """Name to module (for its gradients) and forward, which gives the (B, D, H, W) map of the last stage."""
    dims = tuple(args.dim * 2**stage for stage in range(len(args.depths)))
    config = RingMoEConfig(modalities=("opt",), image_size=args.size, depths=tuple(args.depths), dims=dims).dense()
    ours = RingMoE(config)
    initialise(ours, 0)
    ours.positions.data.zero_()  # timm has none
    theirs = SwinTransformerV2(
        img_size=args.size,
        embed_dim=args.dim,
        depths=config.depths,
        num_heads=[dim // config.head_dim for dim in dims],
        window_size=config.window,
        num_classes=0,
        drop_path_rate=0.0,
    )
    state = {entry.name: entry.tensor for entry in canonical_entries(ours)}
    theirs.load_state_dict(to_timm(state, config, "opt"))
    images, dtype = random_images("opt", args.images, args.size), getattr(torch, args.dtype)
    pixels_BCHW = images.pixels_BCHW.to(dtype)
    return {
        "ringmoe": (ours.to(dtype), lambda: ours.features(images, "opt")[-1]),
        "timm": (theirs.to(dtype), lambda: theirs.forward_features(pixels_BCHW).permute(0, 3, 1, 2)),
    }


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of forward and backward of each, in turns; the first turn is left out.

    Raises:
        RuntimeError: The two do not agree: then there is nothing to compare.
    """
    seconds: dict[str, list[float]] = {}
    results: dict[str, Tensor] = {}
    found = contestants(args)
    for turn in range(args.rounds + 1):
        for name, (module, forward) in found.items():
            module.zero_grad(set_to_none=True)
            start = time.process_time()
            z_BDHW = forward()
            torch.autograd.backward(z_BDHW.float().square().mean())
            if turn:
                seconds.setdefault(name, []).append(time.process_time() - start)
            results[name] = z_BDHW.detach().float()
    if not torch.allclose(results["ringmoe"], results["timm"], rtol=5e-2, atol=5e-2):
        raise RuntimeError("timm's model computes something else than ours")
    return seconds


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="Times the dense encoder beside timm's SwinV2.")
    parser.add_argument("--dim", type=int, default=96, help="width of the first stage; it doubles from one to the next")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 2, 6, 2], help="blocks of each stage")
    parser.add_argument("--size", type=int, default=192, help="pixels along each side")
    parser.add_argument("--images", type=int, default=4, help="images of a step")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(args)
    ours = statistics.median(seconds["ringmoe"])
    print(f"dim {args.dim}, depths {args.depths}, {args.images} images of {args.size} px, {args.dtype}, 1 thread")
    print(f"{'':<10}{'median ms':>10}{'quartiles ms':>18}{'ratio to ours':>15}")
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:<10}{1e3 * median:>10.1f}{f'{1e3 * low:.1f}-{1e3 * high:.1f}':>18}{median / ours:>15.2f}")


if __name__ == "__main__":
    main()
