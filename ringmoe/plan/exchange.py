"""What ranks send each other in one optimiser step, collective by collective.

Counted are the bytes that a rank hands to a collective, which no topology changes, and from them what it puts on the
wire. Left out are scalars: norms, flags, metrics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.plan.activations import FLOAT32, INT64, rows_of_token
from ringmoe.plan.memory import gradient_mode
from ringmoe.plan.parameters import FlatBuffer
from ringmoe.plan.setting import Setting

Operation = Literal["all-to-all", "all-reduce", "all-gather"]

# how often a ring moves the bytes of a collective, as a share of (n - 1) / n
_PASSES: dict[Operation, int] = {"all-to-all": 1, "all-reduce": 2, "all-gather": 1}


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All calls of one kind in a step.

    Attributes:
        name: What is exchanged.
        operation: How.
        bytes: What one rank hands over in all calls together; of an all-gather what comes out.
        calls: How often.
        ranks: Ranks of the group.
        stride: Distance between neighbours of the group: 1 for ranks side by side.
    """

    name: str
    operation: Operation
    bytes: int
    calls: int
    ranks: int
    stride: int = 1

    @property
    def sent(self) -> int:
        """Bytes that one rank sends to others, by the ring algorithm; rows go to each rank alike."""
        return _PASSES[self.operation] * self.bytes * (self.ranks - 1) // self.ranks

    @property
    def messages(self) -> int:
        """Messages that follow each other."""
        return self.calls * _PASSES[self.operation] * (self.ranks - 1)


def collectives(model: RingMoEConfig, setting: Setting, buffers: Sequence[FlatBuffer]) -> tuple[Collective, ...]:
    """Everything that is exchanged in a step.

    Args:
        model: The model.
        setting: How it is run.
        buffers: The engine's flat buffers.
    """
    return (*_expert_exchange(model, setting), *_gradients(setting, buffers), *_weights(setting, buffers))


def _expert_exchange(model: RingMoEConfig, setting: Setting) -> Iterator[Collective]:
    """Rows with their gates there, outputs back, their gradients the same ways, and counts ahead of them.

    See ``ringmoe/moe/dispatch.py``.
    """
    if setting.expert_parallel == 1:
        return
    forwards = 2 if setting.recompute == "blocks" else 1
    num_bytes, calls = 0, 0
    for block in range(model.num_blocks):
        stage = model.stage_of(block)
        rows = setting.micro_batch * model.map_size(stage) ** 2 * rows_of_token(model, block)
        # rows go to the experts with their gates and come back without, and so do their gradients
        num_bytes += rows * (2 * model.dims[stage] * setting.item_bytes + FLOAT32) * (forwards + 1)
        calls += 3 * (forwards + 1)
    routed = len(model.modalities) * model.num_specialised + model.num_collaborative
    counts = model.num_blocks * forwards * setting.accumulation
    yield Collective(
        name="rows to experts",
        operation="all-to-all",
        bytes=num_bytes * setting.accumulation,
        calls=calls * setting.accumulation,
        ranks=setting.expert_parallel,
    )
    yield Collective(
        name="counts of rows",
        operation="all-to-all",
        bytes=counts * routed * INT64,
        calls=counts,
        ranks=setting.expert_parallel,
    )


def _gradients(setting: Setting, buffers: Sequence[FlatBuffer]) -> Iterator[Collective]:
    """Gradients are all-reduced in the run's type: once a step at stage 1, for every micro-batch at stage 2."""
    times = setting.accumulation if setting.engine.stage == 2 else 1
    padded = gradient_mode(setting) == "buffered"
    for name, of_kind in _by_kind(buffers):
        numel = sum(buffer.padded if padded else buffer.numel for buffer in of_kind)
        buckets = max(1, -(-numel // setting.engine.reduce_bucket))
        yield Collective(
            name=f"gradients of {name}",
            operation="all-reduce",
            bytes=times * numel * setting.item_bytes,
            calls=times * buckets,
            ranks=of_kind[0].ranks,
            stride=_stride(setting, of_kind[0]),
        )


def _weights(setting: Setting, buffers: Sequence[FlatBuffer]) -> Iterator[Collective]:
    """After the step each rank gathers every buffer, of which it has stepped its part."""
    for name, of_kind in _by_kind(buffers):
        yield Collective(
            name=f"weights of {name}",
            operation="all-gather",
            bytes=sum(buffer.padded for buffer in of_kind) * setting.item_bytes,
            calls=len(of_kind),
            ranks=of_kind[0].ranks,
            stride=_stride(setting, of_kind[0]),
        )


def _by_kind(buffers: Sequence[FlatBuffer]) -> Iterator[tuple[str, list[FlatBuffer]]]:
    """What all ranks share, and the experts that are spread; each where there are other ranks to exchange it with."""
    for spread, name in ((False, "shared parameters"), (True, "spread experts")):
        of_kind = [buffer for buffer in buffers if buffer.spread == spread and buffer.ranks > 1]
        if of_kind:
            yield name, of_kind


def _stride(setting: Setting, buffer: FlatBuffer) -> int:
    return setting.expert_parallel if buffer.spread else 1
