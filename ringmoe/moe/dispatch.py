"""Tokens to experts and back. A dispatcher has no parameters, drops nothing and knows nothing of routers or families.

``dispatch`` copies each token once for each of its experts and sends the copies (rows) to those experts, each with its
gate; ``receive`` has them there. ``give_back`` sends the outputs back; ``combine`` has them there and adds them up.
What ``dispatch`` found out travels with them as frozen metadata. With gates that sum to 1 and experts that only
multiply by them, the four together are the identity, and so is their gradient.

Rows cross ranks in one exchange each way, which one call begins and the next awaits, so that independent work between
the two (the shared expert, half of it each time) hides it. In the backward pass the gradients' exchange is begun before
that work's own backward and awaited after it, because autograd walks the same calls in reverse.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ringmoe.clock import Clock
from ringmoe.moe.ffn import row_multiple
from ringmoe.moe.parallel import ExpertParallel

# T tokens of this rank, K experts that a token selects, D width, E experts, N expert-parallel ranks,
# R rows: T * K where they start, any number where they arrive


class Rows(NamedTuple):
    """Copies of tokens and what their experts' outputs are multiplied by.

    Attributes:
        x_RD: (R, D) in the type of the tokens.
        gates_R: (R,) in the type of the gates.
    """

    x_RD: Tensor
    gates_R: Tensor


@dataclass(frozen=True, kw_only=True)
class Sent(ABC):
    """What ``dispatch`` leaves for the calls that follow.

    Attributes:
        counts_E: (E,) int64, rows of each expert of this rank, with those that fill up.
    """

    counts_E: Tensor

    @abstractmethod
    def receive(self, rows: Rows) -> Rows:
        """Waits until the rows that ``dispatch`` returned are here, and sorts them by the experts of this rank.

        The rows of an expert may be filled up with others, whose gates are 0.
        """


SentT = TypeVar("SentT", bound=Sent)


class Dispatcher(Protocol[SentT]):
    """Brings tokens to their experts and the outputs back."""

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> tuple[Rows, SentT]:
        """Starts the tokens on their way.

        Args:
            x_TD: (T, D) tokens of this rank.
            ids_TK: (T, K) int64, the experts of each token as positions in the layer's expert list.
            gates_TK: (T, K) what the outputs of these experts are multiplied by.

        Returns:
            rows: To be handed to the metadata's ``receive``, until then perhaps still under way.
            sent: The metadata.
        """
        ...

    def give_back(self, y_RD: Tensor, sent: SentT) -> Tensor:
        """Starts the outputs on their way back.

        Args:
            y_RD: (R, D) outputs of the experts, times their gates, in the order of the received rows.
            sent: The metadata of ``dispatch``.

        Returns:
            To be handed to ``combine``, until then perhaps still under way.
        """
        ...

    def combine(self, y_RD: Tensor, sent: SentT, onto_TD: Tensor | None = None) -> Tensor:
        """Waits for the outputs and sums those of each token: sum_k G_k(x) E_k(x) (Eq. 12), gates being in the rows.

        Args:
            y_RD: What ``give_back`` returned.
            sent: The metadata of ``dispatch``.
            onto_TD: (T, D) what the sum is added to.

        Returns:
            (T, D) in the type of the rows.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SortedRows(Sent):
    """Rows sorted by expert: a permutation of the T * K selections, perhaps with rows in between that only fill up.

    Attributes:
        order_R: (R,) int64, the selection t * K + k behind each row; any for a row that fills up.
        token_R: (R,) int64, the token that each row is a copy of.
        row_TK: (T, K) int64, the row of each selection.
        real_R: (R,) bool, False for rows that fill up; None where there are none.
    """

    order_R: Tensor
    token_R: Tensor
    row_TK: Tensor
    real_R: Tensor | None = None

    @classmethod
    def by(cls, ids_TK: Tensor, num_experts: int, multiple: int = 1) -> "SortedRows":
        """All selections in the stable order of their experts.

        Args:
            ids_TK: (T, K) int64 experts.
            num_experts: Number of experts, E.
            multiple: What the rows of each expert are filled up to a multiple of. R is then the most that could be
                needed, so that no number is read back from the device; behind the last expert's all rows fill up.
        """
        experts_R, order_R = ids_TK.reshape(-1).sort(stable=True)
        starts = torch.searchsorted(experts_R, torch.arange(num_experts + 1, device=order_R.device))
        counts_E, row_R, real_R = starts.diff(), torch.arange(len(order_R), device=order_R.device), None
        row_TK = torch.empty_like(order_R)
        if multiple > 1:
            filled_E = (counts_E + multiple - 1) // multiple * multiple
            row_R = row_R + (filled_E.cumsum(0) - filled_E - starts[:-1])[experts_R]
            row_TK.index_copy_(0, order_R, row_R)
            num_rows = len(order_R) + min(num_experts, len(order_R)) * (multiple - 1)
            real_R = torch.zeros(num_rows, dtype=torch.bool, device=order_R.device).index_fill_(0, row_R, True)
            order_R = order_R.new_zeros(num_rows).index_copy_(0, row_R, order_R)
            counts_E = filled_E
        else:
            row_TK.index_copy_(0, order_R, row_R)
        token_R = order_R // ids_TK.shape[1]
        return cls(counts_E=counts_E, order_R=order_R, token_R=token_R, row_TK=row_TK.view_as(ids_TK), real_R=real_R)

    def copy(self, x_TD: Tensor, gates_TK: Tensor) -> Rows:
        """The rows of these tokens."""
        gates_R = _copy(gates_TK.reshape(-1, 1), self.order_R, self.row_TK.view(-1, 1)).squeeze(1)
        gates_R = gates_R if self.real_R is None else torch.where(self.real_R, gates_R, 0.0)
        return Rows(_copy(x_TD, self.token_R, self.row_TK), gates_R)

    def receive(self, rows: Rows) -> Rows:
        """The rows as they are: they never left."""
        return rows


class LocalDispatcher:
    """All experts are on this rank: dispatch sorts, combine sums.

    Args:
        num_experts: Experts in the layer's list.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> tuple[Rows, SortedRows]:
        """See ``Dispatcher``."""
        sent = SortedRows.by(ids_TK, self.num_experts, row_multiple(x_TD.element_size()))
        return sent.copy(x_TD, gates_TK), sent

    def give_back(self, y_RD: Tensor, sent: SortedRows) -> Tensor:
        """See ``Dispatcher``."""
        return y_RD

    def combine(self, y_RD: Tensor, sent: SortedRows, onto_TD: Tensor | None = None) -> Tensor:
        """See ``Dispatcher``."""
        return _sum(y_RD, sent.token_R, sent.row_TK, onto_TD)


@dataclass(frozen=True, kw_only=True)
class ExchangedRows(Sent):
    """Rows that went to other ranks.

    Attributes:
        departed: The order in which this rank's own rows left: by rank, then by the expert there.
        arrived: The order by local expert of the rows that came, which arrive rank by rank.
        exchanges: The ways of the tokens and of their gates.
        back: The way of the outputs.
    """

    departed: SortedRows
    arrived: SortedRows
    exchanges: tuple["_Exchange", ...]
    back: "_Exchange"

    def receive(self, rows: Rows) -> Rows:
        """Waits for the rows and sorts them by the experts of this rank."""
        x_RD, gates_R = (_Arrive.apply(part, way) for part, way in zip(rows, self.exchanges, strict=True))
        return self.arrived.copy(x_RD, gates_R.unsqueeze(1))


class AllToAllDispatcher:
    """Experts are spread over ranks: a local dispatch by rank and expert, then one exchange of rows.

    Args:
        num_experts: Experts in the layer's list, those of all ranks.
        parallel: Who holds which; its group is read at each call, because it is made after the model.
    """

    def __init__(self, num_experts: int, parallel: ExpertParallel) -> None:
        self.parallel = parallel
        self.num_experts = num_experts

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> tuple[Rows, ExchangedRows]:
        """See ``Dispatcher``. Every rank of the group calls it together."""
        group, ranks = self._group(), self.parallel.size
        departed = SortedRows.by(self.parallel.by_rank(ids_TK, self.num_experts), self.num_experts)
        leaving_NE = departed.counts_E.view(ranks, -1)
        coming_NE = torch.empty_like(leaving_NE)
        with self.parallel.clock.during("exchange"):
            dist.all_to_all_single(coming_NE, leaving_NE, group=group)
        # the one time that the host must know numbers: the exchange takes its sizes from it
        leaving, coming = torch.stack((leaving_NE.sum(1), coming_NE.sum(1))).tolist()
        exchanges = [_Exchange(leaving, coming, group, self.parallel.clock) for _ in Rows._fields]
        rows = departed.copy(x_TD, gates_TK)
        rows = Rows(*(_Depart.apply(part, way) for part, way in zip(rows, exchanges, strict=True)))
        local_experts = torch.arange(coming_NE.shape[1], device=x_TD.device).repeat(ranks)
        ids_R = local_experts.repeat_interleave(coming_NE.flatten(), output_size=sum(coming))
        arrived = SortedRows.by(ids_R.unsqueeze(1), coming_NE.shape[1], row_multiple(x_TD.element_size()))
        return rows, ExchangedRows(
            counts_E=arrived.counts_E,
            departed=departed,
            arrived=arrived,
            exchanges=tuple(exchanges),
            back=_Exchange(coming, leaving, group, self.parallel.clock),
        )

    def give_back(self, y_RD: Tensor, sent: ExchangedRows) -> Tensor:
        """See ``Dispatcher``. Every rank of the group calls it together."""
        under_way: Tensor = _Depart.apply(_sum(y_RD, sent.arrived.order_R, sent.arrived.row_TK), sent.back)
        return under_way

    def combine(self, y_RD: Tensor, sent: ExchangedRows, onto_TD: Tensor | None = None) -> Tensor:
        """See ``Dispatcher``. Every rank of the group calls it together."""
        return _sum(_Arrive.apply(y_RD, sent.back), sent.departed.token_R, sent.departed.row_TK, onto_TD)

    def _group(self) -> dist.ProcessGroup:
        if self.parallel.group is None:
            raise RuntimeError("experts are spread over ranks, but ExpertParallel.group was not set before the forward")
        return self.parallel.group


def make_dispatcher(num_experts: int, parallel: ExpertParallel) -> Dispatcher[Any]:
    """The dispatcher for this many ranks."""
    return LocalDispatcher(num_experts) if parallel.size == 1 else AllToAllDispatcher(num_experts, parallel)


class _Exchange:
    """One all-to-all of rows with uneven splits, and its reverse for their gradients; begun and awaited apart."""

    def __init__(self, leaving: list[int], coming: list[int], group: dist.ProcessGroup, clock: Clock) -> None:
        self.leaving, self.coming, self.group, self.clock = leaving, coming, group, clock
        self._under_way: tuple[dist.Work, Tensor, Tensor] | None = None

    def begin(self, rows_RD: Tensor, leaving: list[int], coming: list[int]) -> Tensor:
        """Starts the rows; returns the buffer that they will arrive in."""
        rows_RD = rows_RD.contiguous()
        landing_RD = rows_RD.new_empty(sum(coming), *rows_RD.shape[1:])
        work = dist.all_to_all_single(landing_RD, rows_RD, coming, leaving, group=self.group, async_op=True)
        # what leaves must stay in memory until it is there
        assert work is not None, "this rank is not in the group"
        self._under_way = work, rows_RD, landing_RD
        return landing_RD

    def end(self) -> Tensor:
        """Waits for the rows that were started last."""
        assert self._under_way is not None, "nothing is under way"
        (work, _, landing_RD), self._under_way = self._under_way, None
        with self.clock.during("exchange"):  # what no other work has hidden
            work.wait()
        return landing_RD


class _Depart(torch.autograd.Function):
    """Begins an exchange; its backward ends the exchange of gradients that ``_Arrive`` began."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.begin(rows_RD, exchange.leaving, exchange.coming)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.end(), None


class _Arrive(torch.autograd.Function):
    """Ends an exchange; its backward begins the exchange of gradients that ``_Depart`` ends."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.end()
        return rows_RD.view_as(rows_RD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.begin(grad_RD, ctx.exchange.coming, ctx.exchange.leaving)
        # only keeps the place: `_Depart` hands on what arrives
        return grad_RD, None


class _Copy(torch.autograd.Function):
    """Rows as copies of tokens. Knowing each token's K rows, its backward gathers and adds instead of scattering."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return x_TD.index_select(0, token_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        return _gather_sum(grad_RD, *ctx.saved_tensors), None, None


class _Sum(torch.autograd.Function):
    """The sum of each token's K rows, onto something else; the reverse of ``_Copy``."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, row_TK: Tensor, onto_TD: Tensor | None) -> Tensor:
        ctx.save_for_backward(token_R)
        return _gather_sum(y_RD, row_TK, onto_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        (token_R,) = ctx.saved_tensors
        return grad_TD.index_select(0, token_R), None, None, grad_TD if ctx.needs_input_grad[3] else None


def _gather_sum(rows_RD: Tensor, row_TK: Tensor, onto_TD: Tensor | None = None) -> Tensor:
    """(T, D) the sum of each token's K rows, and of what it is added to."""
    sum_TD = F.embedding_bag(row_TK, rows_RD, mode="sum")  # one pass, and bfloat16 adds in float32
    return sum_TD if onto_TD is None else sum_TD.add_(onto_TD)


def _copy(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    rows_RD: Tensor = _Copy.apply(x_TD, token_R, row_TK)
    return rows_RD


def _sum(y_RD: Tensor, token_R: Tensor, row_TK: Tensor, onto_TD: Tensor | None = None) -> Tensor:
    y_TD: Tensor = _Sum.apply(y_RD, token_R, row_TK, onto_TD)
    return y_TD
