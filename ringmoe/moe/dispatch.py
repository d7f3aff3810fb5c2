"""Tokens to experts and back. A dispatcher has no parameters, drops nothing and knows nothing of gates or families.

Two methods make the contract. ``dispatch`` copies each token once for each of its experts and brings the copies
(rows) to those experts; ``combine`` brings the outputs back and adds them up with weights. What ``dispatch`` found out
travels between the two as frozen metadata. With weights that sum to 1 and experts that do nothing, dispatch and then
combine is the identity, and so is its gradient.

Rows cross ranks in one exchange each way. It is begun in ``dispatch`` and awaited in the metadata's ``receive``, so
that independent work (the shared expert) hides it; in the backward pass the gradients' exchange is begun before that
work's own backward and awaited after it, because autograd walks the same calls in reverse.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ringmoe.clock import Clock
from ringmoe.moe.parallel import ExpertParallel

# T tokens of this rank, K experts that a token selects, D width, E experts, N expert-parallel ranks,
# R rows: T * K where they start, any number where they arrive


@dataclass(frozen=True, kw_only=True)
class Sent(ABC):
    """What ``dispatch`` leaves for ``receive`` and ``combine``.

    Attributes:
        counts_E: (E,) int64, rows of each expert of this rank.
    """

    counts_E: Tensor

    @abstractmethod
    def receive(self, rows_RD: Tensor) -> Tensor:
        """Waits until the rows that ``dispatch`` returned are here; (R, D) sorted by the experts of this rank."""


SentT = TypeVar("SentT", bound=Sent)


class Dispatcher(Protocol[SentT]):
    """Brings tokens to their experts and the outputs back."""

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor) -> tuple[Tensor, SentT]:
        """Starts the tokens on their way.

        Args:
            x_TD: (T, D) tokens of this rank.
            ids_TK: (T, K) int64, the experts of each token as positions in the layer's expert list.

        Returns:
            rows: To be handed to the metadata's ``receive``, until then perhaps still under way.
            sent: The metadata.
        """
        ...

    def combine(self, rows_RD: Tensor, sent: SentT, weights_TK: Tensor) -> Tensor:
        """Sums each token's outputs with its weights: sum_k G_k(x) E_k(x) (Eq. 12).

        Args:
            rows_RD: (R, D) outputs of the experts in the order of the received rows.
            sent: The metadata of ``dispatch``.
            weights_TK: (T, K) weights in the order of the ids.

        Returns:
            (T, D) in the type of the rows; the sum is taken in the type of the weights where that is wider.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SortedRows(Sent):
    """Rows sorted by expert: a permutation of the T * K selections, and its inverse.

    Attributes:
        order_R: (R,) int64, the selection t * K + k behind each row.
        token_R: (R,) int64, the token that each row is a copy of.
        row_TK: (T, K) int64, the row of each selection.
    """

    order_R: Tensor
    token_R: Tensor
    row_TK: Tensor

    @classmethod
    def by(cls, ids_TK: Tensor, num_experts: int) -> "SortedRows":
        """All selections in the stable order of their experts."""
        sorted_R, order_R = ids_TK.reshape(-1).sort(stable=True)
        places_R = torch.arange(len(order_R), device=order_R.device)
        starts = torch.searchsorted(sorted_R, torch.arange(num_experts + 1, device=order_R.device))
        return cls(
            counts_E=starts.diff(),
            order_R=order_R,
            token_R=order_R // ids_TK.shape[1],
            row_TK=torch.empty_like(order_R).scatter_(0, order_R, places_R).view_as(ids_TK),
        )

    def receive(self, rows_RD: Tensor) -> Tensor:
        """The rows as they are: they never left."""
        return rows_RD


class LocalDispatcher:
    """All experts are on this rank: dispatch sorts, combine sums.

    Args:
        num_experts: Experts in the layer's list.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor) -> tuple[Tensor, SortedRows]:
        """See ``Dispatcher``."""
        rows = SortedRows.by(ids_TK, self.num_experts)
        return _copy(x_TD, rows.token_R, rows.row_TK), rows

    def combine(self, rows_RD: Tensor, sent: SortedRows, weights_TK: Tensor) -> Tensor:
        """See ``Dispatcher``."""
        y_TD: Tensor = _WeightedSum.apply(rows_RD, weights_TK, sent)
        return y_TD


@dataclass(frozen=True, kw_only=True)
class ExchangedRows(Sent):
    """Rows that went to other ranks.

    Attributes:
        departed: The order in which this rank's own rows left: by rank, then by the expert there.
        arrived: The order by local expert of the rows that came, which arrive rank by rank.
        exchange: The way between the two.
    """

    departed: SortedRows
    arrived: SortedRows
    exchange: "_Exchange"

    def receive(self, rows_RD: Tensor) -> Tensor:
        """Waits for the rows and sorts them by the experts of this rank."""
        rows_RD = _Arrive.apply(rows_RD, self.exchange)
        return _copy(rows_RD, self.arrived.order_R, self.arrived.row_TK)


class AllToAllDispatcher:
    """Experts are spread over ranks: a local dispatch by rank and expert, then one exchange of rows.

    Args:
        num_experts: Experts in the layer's list, those of all ranks.
        parallel: Who holds which; its group is read at each call, because it is made after the model.
    """

    def __init__(self, num_experts: int, parallel: ExpertParallel) -> None:
        self.parallel = parallel
        self.num_experts = num_experts
        self._local = LocalDispatcher(num_experts)

    def dispatch(self, x_TD: Tensor, ids_TK: Tensor) -> tuple[Tensor, ExchangedRows]:
        """See ``Dispatcher``. Every rank of the group calls it together."""
        group, ranks = self._group(), self.parallel.size
        rows_RD, departed = self._local.dispatch(x_TD, self.parallel.by_rank(ids_TK, self.num_experts))
        leaving_NE = departed.counts_E.view(ranks, -1)
        coming_NE = torch.empty_like(leaving_NE)
        with self.parallel.clock.during("exchange"):
            dist.all_to_all_single(coming_NE, leaving_NE, group=group)
        # the one time that the host must know numbers: the exchange takes its sizes from it
        leaving, coming = torch.stack((leaving_NE.sum(1), coming_NE.sum(1))).tolist()
        local_experts = torch.arange(coming_NE.shape[1], device=x_TD.device).repeat(ranks)
        ids_R = local_experts.repeat_interleave(coming_NE.flatten(), output_size=sum(coming))
        exchange = _Exchange(leaving, coming, group, self.parallel.clock)
        arrived = SortedRows.by(ids_R.unsqueeze(1), coming_NE.shape[1])
        sent = ExchangedRows(counts_E=arrived.counts_E, departed=departed, arrived=arrived, exchange=exchange)
        return _Depart.apply(rows_RD, exchange), sent

    def combine(self, rows_RD: Tensor, sent: ExchangedRows, weights_TK: Tensor) -> Tensor:
        """See ``Dispatcher``. Every rank of the group calls it together."""
        back = sent.exchange.reversed()
        rows_RD = _copy(rows_RD, sent.arrived.row_TK.flatten(), sent.arrived.order_R.unsqueeze(1))
        rows_RD = _Arrive.apply(_Depart.apply(rows_RD, back), back)
        return self._local.combine(rows_RD, sent.departed, weights_TK)

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

    def reversed(self) -> "_Exchange":
        """The way back."""
        return _Exchange(self.coming, self.leaving, self.group, self.clock)

    def begin(self, rows_RD: Tensor, leaving: list[int], coming: list[int]) -> Tensor:
        """Starts the rows; returns the buffer that they will arrive in."""
        rows_RD = rows_RD.contiguous()
        landing_RD = rows_RD.new_empty(sum(coming), rows_RD.shape[1])
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
        (row_TK,) = ctx.saved_tensors
        first, *others = row_TK.unbind(1)
        grad_TD = grad_RD.index_select(0, first)
        for row_T in others:
            grad_TD += grad_RD.index_select(0, row_T)
        return grad_TD, None, None


def _copy(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    rows_RD: Tensor = _Copy.apply(x_TD, token_R, row_TK)
    return rows_RD


class _WeightedSum(torch.autograd.Function):
    """sum_k weight * row for each token. The weight's gradient is the product of row and gradient, never a quotient."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weights_TK: Tensor, sent: SortedRows) -> Tensor:
        ctx.save_for_backward(rows_RD, weights_TK, sent.order_R, sent.token_R, sent.row_TK)
        wide = torch.promote_types(rows_RD.dtype, weights_TK.dtype)
        y_TD = torch.zeros(len(weights_TK), rows_RD.shape[1], dtype=wide, device=rows_RD.device)
        for row_T, weight_T in zip(sent.row_TK.unbind(1), weights_TK.unbind(1), strict=True):
            y_TD.addcmul_(rows_RD.index_select(0, row_T), weight_T.unsqueeze(1))
        return y_TD.to(rows_RD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_RD, weights_TK, order_R, token_R, row_TK = ctx.saved_tensors
        products_KT = [
            torch.sum(rows_RD.index_select(0, row_T) * grad_TD, dim=1, dtype=weights_TK.dtype)
            for row_T in row_TK.unbind(1)
        ]
        weight_R = weights_TK.flatten().index_select(0, order_R).to(grad_TD.dtype)
        grad_RD = grad_TD.index_select(0, token_R).mul_(weight_R.unsqueeze(1))
        return grad_RD, torch.stack(products_KT, dim=1), None
