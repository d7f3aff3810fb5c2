"""What a rank could compute at best: the rate of a large matrix product, measured where the run computes."""

from dataclasses import dataclass

import torch

from ringmoe.clock import REST, clock_of

_SIDES = {"cpu": 1024, "cuda": 8192}  # of square matrices: large enough for the full rate, small enough for a moment
_SECONDS = 0.25
_FEWEST = 3


@dataclass(frozen=True)
class Peak:
    """The best rate that was seen.

    Attributes:
        flops_per_second: Two operations for each multiply-accumulate.
        what: What was measured, in words.
    """

    flops_per_second: float
    what: str


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Multiplies square matrices for a quarter of a second, after a product that warms up; the fastest counts.

    Args:
        device: Where the run computes; on a CPU with the threads that this process has.
        dtype: Type of the run's weights and activations.
    """
    side = _SIDES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a_NN, b_NN = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    product_NN = a_NN @ b_NN
    clock, seconds = clock_of(device), list[float]()
    while len(seconds) < _FEWEST or sum(seconds) < _SECONDS:
        clock.start()
        torch.mm(a_NN, b_NN, out=product_NN)
        seconds.append(clock.stop()[REST])
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
        del a_NN, b_NN, product_NN
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)  # the run's own memory is to be measured
    else:
        threads = torch.get_num_threads()
        where = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    rate = 2 * side**3 / min(seconds)
    name = str(dtype).removeprefix("torch.")
    return Peak(rate, f"{rate / 1e12:.3g} TFLOP/s in a product of {side} x {side} matrices, {name}, {where}")
