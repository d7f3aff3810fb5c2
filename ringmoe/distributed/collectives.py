"""Small agreements between ranks. Every rank must call them, with the same names, in the same order.

Without a process group a world of one rank is meant, and nothing is exchanged. Objects travel as JSON, never pickled.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Reduction = Literal["mean", "sum", "max", "last"]


def world_size() -> int:
    """Ranks of the job; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def reduce_metrics(values: Mapping[str, tuple[Tensor, Reduction]]) -> dict[str, Tensor]:
    """Metrics of all ranks in at most two exchanges, however many there are.

    Args:
        values: For each name a tensor of any shape, the same on all ranks, and how it is put together: ``mean``,
            ``sum`` or ``max`` over the ranks, or ``last`` for what is equal on all of them and needs no exchange.

    Returns:
        The same names and shapes, float64, on the CPU.
    """
    reduced = {name: value.detach().to("cpu", torch.float64) for name, (value, _) in values.items()}
    if world_size() == 1:
        return reduced
    for op, kinds in ((dist.ReduceOp.SUM, ("mean", "sum")), (dist.ReduceOp.MAX, ("max",))):
        names = sorted(name for name, (_, kind) in values.items() if kind in kinds)
        if not names:
            continue
        flat = torch.cat([reduced[name].reshape(-1) for name in names]).to(_device())
        dist.all_reduce(flat, op=op)
        parts = torch.split(flat.cpu(), [reduced[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            scale = world_size() if values[name][1] == "mean" else 1
            reduced[name] = (part / scale).reshape(reduced[name].shape)
    return reduced


def gather_json(value: Any, group: Any = None) -> list[Any]:
    """What each rank gave, in the order of the ranks, on every rank.

    Args:
        value: Anything that JSON can hold.
        group: A process group of all ranks; None for the one of the job.
    """
    if world_size() == 1:
        return [value]
    content = _encode(value)
    device = _device(group)
    lengths = [torch.tensor(0, device=device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor(len(content), device=device), group)
    longest = int(max(length.item() for length in lengths))
    parts = [_tensor(b"", longest, device) for _ in lengths]
    dist.all_gather(parts, _tensor(content, longest, device), group)
    return [_decode(part, int(length.item())) for part, length in zip(parts, lengths, strict=True)]


def barrier(reason: str) -> None:
    """Waits until every rank is here.

    Args:
        reason: What is being waited for, for the message when a rank does not come.

    Raises:
        RuntimeError: A rank did not come in time or is gone; it is named where the backend can tell.
    """
    if world_size() == 1:
        return
    try:
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(wait_all_ranks=True)
        else:
            dist.barrier()
    except RuntimeError as error:
        raise RuntimeError(f"rank {dist.get_rank()} waited in vain for the others ({reason}): {error}") from error


def _device(group: Any = None) -> torch.device:
    """Where the backend of a group, None for the one of the job, expects its tensors."""
    on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def _tensor(content: bytes, length: int, device: torch.device) -> Tensor:
    """Bytes as a tensor of ``length``, zeros behind them."""
    return torch.frombuffer(bytearray(content.ljust(length, b"\0")), dtype=torch.uint8).to(device)


def _decode(data: Tensor, length: int) -> Any:
    return json.loads(data[:length].cpu().numpy().tobytes())
