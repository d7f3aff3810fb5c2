"""The lean engine: one process, plain torch, and an AdamW that fits a model beside itself on one device.

AdamW with masters and moments in fp32 takes 12 bytes for each parameter beside the 2 of a bf16 weight. This one takes
2: moments are kept in eight bits (``ringmoe.distributed.eight_bits``), and there is no master copy. A step is computed
in fp32, slice by slice, and written back to bf16 rounded at random, so that steps smaller than half of a weight's last
bit are not lost but taken as often as it takes. All randomness is a function of (seed, step, global name, place): a run
that is continued equals one that was not interrupted, bit for bit.

What gradients take is the run's choice, here for the 14.8 billion parameters of ``ringmoe-14b`` in bf16, whose weights
and moments take 59 GB:

* clip 0 and accumulation 1: each parameter is stepped as soon as the backward pass has its gradient, which is then
  released. Gradients of one module at a time: 4 GB at most.
* a norm to clip by is known when all gradients are: they are held until then, in the type of the weights. 30 GB.
* accumulation above 1: the sum is held in fp32, as in every engine. 59 GB.

Where gradients are held, a step with one that is not finite is left out: weights and moments stay, and neither host nor
device waits to know it. A step that was begun while gradients came cannot be taken back: there such a gradient spoils
weights and shows in ``grad_norm``, by which a run stops before anything is saved.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ringmoe import counter
from ringmoe.distributed.eight_bits import FIRST_MOMENT, SECOND_MOMENT, Code, Encoded, decode, encode, to_bfloat16
from ringmoe.distributed.engine_file import EngineConfig
from ringmoe.distributed.topology import Topology
from ringmoe.distributed.training_engine import ParameterGroups, by_parameter, check_groups, checked
from ringmoe.errors import ConfigError
from ringmoe.naming import Entry, canonical_entries

# N numbers of a slice or of a tensor

SLICE = 1 << 22  # numbers that are stepped at once, whole blocks; their temporaries are what a step needs of workspace

Moment = Tensor | Encoded


@dataclass(frozen=True)
class _Named:
    """One globally named tensor of a parameter, with what the optimiser keeps of it."""

    entry: Entry
    number: int  # among all names, where its random key is found
    first: Moment
    second: Moment


class _Rates(NamedTuple):
    """Numbers of a step that change from one to the next, fp32 scalars on the device."""

    decay: Tensor  # learning rate x weight decay
    step: Tensor  # learning rate over the bias correction of the first moment
    root: Tensor  # root of the bias correction of the second
    factor: Tensor  # what gradients are multiplied by
    sound: Tensor | None  # bool, whether the step is taken; None where it is in any case


class _Constants(NamedTuple):
    """Numbers that no step changes."""

    beta1: float
    beta2: float
    eps: float


def check_lean(world: int, expert_parallel: int) -> None:
    """Checks that a run can be one process.

    Raises:
        ConfigError: It has several ranks, or spreads experts over some.
    """
    if world > 1:
        raise ConfigError(
            f"the lean engine is for one device, here are {world} ranks: start one, or take an engine file that "
            "shares the optimiser out among them (--parallel.engine zero1)"
        )
    if expert_parallel > 1:
        raise ConfigError(
            f"the lean engine holds all experts on one device: use --parallel.expert-parallel 1 instead of "
            f"{expert_parallel}"
        )


class LeanEngine:
    """A model with AdamW on one device; a ``TrainingEngine``.

    A parameter that gets no gradient in a step is left as it is, moments included.

    Args:
        model: The model, with its weights where and in the type in which they are to be trained: bf16 or fp32.
        param_groups: As for ``torch.optim.AdamW``, each with ``params`` and ``weight_decay``; together they hold every
            parameter.
        config: What the engine needs to know of the run; its ``file`` and ``dtype`` are not looked at.
        seed: Fixes all rounding.
        state_bits: 8, or 32 for moments in fp32, which is what the other is judged by.

    Attributes:
        model: The model as it was given.
        topology: One rank.

    Raises:
        ConfigError: The parameter groups do not hold every parameter once.
    """

    def __init__(
        self, model: nn.Module, param_groups: ParameterGroups, config: EngineConfig, *, seed: int, state_bits: int = 8
    ) -> None:
        check_groups(model, param_groups)
        self.model, self.topology = model, Topology()
        self._config, self._seed, self._lr = config, seed, config.lr
        self._releases = config.accumulation == 1 and config.clip == 0
        self._decay = {parameter: float(g["weight_decay"]) for g in param_groups for parameter in g["params"]}
        self._device = next(model.parameters()).device
        numbers, keys = count(), []
        self._named: dict[nn.Parameter, list[_Named]] = {}
        for parameter, entries in by_parameter(canonical_entries(model)):
            keys += [counter.key("rounding", seed, entry.name) for entry in entries]
            self._named[parameter] = [_Named(entry, next(numbers), *_zeros(entry, state_bits)) for entry in entries]
        self._keys_E = torch.tensor(keys, dtype=torch.int64, device=self._device)
        self._held: dict[nn.Parameter, Tensor] = {}
        self._micro_batches = 0
        # counted on the device, which alone knows in time whether a step is taken
        self._taken = torch.zeros((), dtype=torch.int64, device=self._device)
        self._norm = self._scalar(0.0)
        self._sound: Tensor | None = None
        self._begin()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._take_gradient)  # type: ignore[no-untyped-call]
            for parameter in self._named
        ]

    def forward(self, *inputs: Any) -> Any:
        """The model's output for a micro-batch."""
        return self.model(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a micro-batch's loss, a scalar, to the step's; or steps each parameter at once."""
        if self._micro_batches == 0:
            self._begin()
        torch.autograd.backward(loss / self._config.accumulation)

    def step(self) -> None:
        """Ends a micro-batch: the last one of a step ends the step, the others are only counted."""
        boundary = self.is_boundary
        self._micro_batches = 0 if boundary else self._micro_batches + 1
        if not boundary:
            return
        for parameter, gradient in self._held.items():
            self._measure(parameter, gradient)
        self._norm = self._square.sqrt()
        if self._config.clip:
            self._factor = (self._config.clip / (self._norm + 1e-6)).clamp(max=1.0)
        if not self._releases:
            self._sound = self._norm.isfinite()
        while self._held:
            self._update(*self._held.popitem())
        self._taken += 1 if self._sound is None else self._sound

    @property
    def is_boundary(self) -> bool:
        """Whether the coming ``step`` will end the optimiser step."""
        return self._micro_batches + 1 == self._config.accumulation

    @property
    def skipped(self) -> bool:
        """Whether the last optimiser step was left out since a gradient was not finite; waits for the device."""
        return self._sound is not None and not self._sound.item()

    @property
    def can_skip(self) -> bool:
        """Whether gradients are held until all are known, see the module."""
        return not self._releases

    @property
    def updates(self) -> int:
        """Optimiser steps that weights and moments have seen; waits for the device."""
        return int(self._taken.item())

    @property
    def grad_norm(self) -> Tensor:
        """Global norm of the last step's gradient, before clipping; not finite where a gradient was not."""
        return self._norm

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the coming steps."""
        self._lr = lr

    def state_of(self, entries: Iterable[Entry]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The fp32 state of the named tensors, one at a time.

        Args:
            entries: ``canonical_entries`` of the model.

        Yields:
            Global name and its ``weight``, ``exp_avg`` and ``exp_avg_sq`` on the CPU.
        """
        named = {each.entry.name: each for of_parameter in self._named.values() for each in of_parameter}
        for entry in entries:
            of_name = named[entry.name]
            moments = {
                "exp_avg": _read(of_name.first, FIRST_MOMENT),
                "exp_avg_sq": _read(of_name.second, SECOND_MOMENT),
            }
            state = {"weight": entry.tensor, **moments}
            yield (
                entry.name,
                {
                    kind: value.view(entry.tensor.shape).to("cpu", torch.float32, copy=True)
                    for kind, value in state.items()
                },
            )

    def load_state(self, getter: Callable[[str], Mapping[str, Tensor]], step: int) -> None:
        """Sets weights and moments to saved ones, rounded to the nearest; what this engine saved loads as it was.

        Args:
            getter: For a global name its ``weight``, ``exp_avg`` and ``exp_avg_sq``.
            step: Optimiser steps that the state has seen.

        Raises:
            CheckpointError: A tensor has another shape than the model's, or a moment is missing.
        """
        self._taken.fill_(step)
        for of_parameter in self._named.values():
            for named in of_parameter:
                saved = checked(getter(named.entry.name), named.entry)
                named.entry.tensor.copy_(saved["weight"])
                for moment, code, kind in (
                    (named.first, FIRST_MOMENT, "exp_avg"),
                    (named.second, SECOND_MOMENT, "exp_avg_sq"),
                ):
                    value_N = saved[kind].to(self._device, torch.float32).flatten()
                    _write(moment, value_N if isinstance(moment, Tensor) else encode(value_N, code))

    def close(self) -> None:
        """Lets go of the model: its parameters keep their values and lose the engine's hooks."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self) -> None:
        """What the updates of the coming step share."""
        number = self._taken + 1
        beta1, beta2 = self._config.betas
        self._step_size = (self._lr / (1 - beta1 ** number.double())).float()
        self._root = (1 - beta2 ** number.double()).sqrt().float()
        self._decays = {decay: self._scalar(self._lr * decay) for decay in set(self._decay.values())}
        self._step_keys_E = counter.mix(self._keys_E, number)
        self._sound = None
        self._square, self._factor = self._scalar(0.0), self._scalar(1.0)

    def _scalar(self, value: float) -> Tensor:
        # filled on the device: a number that is copied there would wait for all that is under way
        return torch.full((), value, dtype=torch.float32, device=self._device)

    def _take_gradient(self, parameter: Tensor) -> None:
        """Called by autograd when a parameter's gradient of a micro-batch is complete."""
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        if self._releases:
            self._measure(parameter, gradient)
            self._update(parameter, gradient)
        elif self._config.accumulation == 1:
            self._held[parameter] = gradient
        elif parameter in self._held:
            self._held[parameter].add_(gradient)
        else:
            self._held[parameter] = gradient.float()

    def _measure(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Adds a gradient to the square of the step's norm."""
        for named in self._named[parameter]:
            part = _part(gradient, named.entry)
            self._square += torch.linalg.vector_norm(part, dtype=torch.float32).square()

    @torch.no_grad()
    def _update(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Takes the step of one parameter."""
        update = _compiled() if parameter.is_cuda else _updated
        constants = _Constants(*self._config.betas, self._config.eps)
        rates = _Rates(self._decays[self._decay[parameter]], self._step_size, self._root, self._factor, self._sound)
        for named in self._named[parameter]:
            # views that autograd watches: it would notice a weight that is still needed for the backward pass
            weight_N = _part(parameter.detach(), named.entry).view(-1)
            gradient_N = _part(gradient, named.entry).reshape(-1)
            for start in range(0, len(weight_N), SLICE):
                end = min(start + SLICE, len(weight_N))
                first, second = (_slice(moment, start, end) for moment in (named.first, named.second))
                old_N, slope_N = weight_N[start:end], gradient_N[start:end]
                random = (self._step_keys_E[named.number], start)
                new_N, new_first, new_second = update(old_N, slope_N, first, second, random, rates, constants)
                old_N.copy_(new_N)
                _write(first, new_first)
                _write(second, new_second)


def _updated(
    weight_N: Tensor,
    gradient_N: Tensor,
    first: Moment,
    second: Moment,
    random: tuple[Tensor, int],
    rates: _Rates,
    constants: _Constants,
) -> tuple[Tensor, Moment, Moment]:
    """AdamW (Loshchilov and Hutter, 2019), as ``torch.optim.AdamW`` computes it, of a slice of a tensor.

    Args:
        weight_N: (N,) bf16 or fp32.
        gradient_N: (N,) of any type.
        first: First moment.
        second: Second moment.
        random: Random key of tensor and step, and where in the tensor the slice begins.
        rates: Of this step.
        constants: Of all steps.

    Returns:
        New weights and moments, each as it came.
    """
    (key, start), (beta1, beta2, eps) = random, constants
    random_N = counter.mix(torch.arange(len(weight_N), device=weight_N.device) + start, key)
    slope_N = gradient_N.float() * rates.factor
    second_N = beta2 * _read(second, SECOND_MOMENT) + (1 - beta2) * slope_N * slope_N
    root_N = second_N.sqrt()
    first_N = beta1 * _read(first, FIRST_MOMENT) + (1 - beta1) * slope_N
    if beta1 * beta1 < beta2:
        # exact moments obey this bound (Cauchy-Schwarz); after rounding, a second moment may be too small for its first
        bound = (1 - beta1) / ((1 - beta2) * (1 - beta1 * beta1 / beta2)) ** 0.5
        most_N = bound * root_N
        first_N = first_N.clamp(-most_N, most_N)
    old_N = weight_N.float()
    new_N = old_N - (rates.decay * old_N + rates.step * first_N / (root_N / rates.root + eps))
    weights_N = to_bfloat16(new_N, random_N) if weight_N.dtype == torch.bfloat16 else new_N
    new_first = first_N if isinstance(first, Tensor) else encode(first_N, FIRST_MOMENT, random_N >> 16)
    new_second = second_N if isinstance(second, Tensor) else encode(second_N, SECOND_MOMENT, random_N >> 32)
    if rates.sound is None:
        return weights_N, new_first, new_second
    kept_N = torch.where(rates.sound, weights_N, weight_N)
    return kept_N, _chosen(rates.sound, new_first, first), _chosen(rates.sound, new_second, second)


def _chosen(sound: Tensor, new: Moment, old: Moment) -> Moment:
    """The new moment where ``sound`` is true, else the old one; nobody waits to know."""
    parts = [torch.where(sound, one, other) for one, other in zip(_tensors(new), _tensors(old), strict=True)]
    return parts[0] if isinstance(old, Tensor) else Encoded(*parts)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Moment, Moment]]:
    # on a GPU a few kernels instead of a hundred; slices come in any length
    return torch.compile(_updated, dynamic=True)


def _zeros(entry: Entry, bits: int) -> tuple[Moment, Moment]:
    """Both moments of a tensor that has seen no gradient."""
    num, device = entry.tensor.numel(), entry.tensor.device
    if bits == 32:
        return torch.zeros(num, device=device), torch.zeros(num, device=device)
    return Encoded.zeros(num, FIRST_MOMENT, device), Encoded.zeros(num, SECOND_MOMENT, device)


def _slice(moment: Moment, start: int, end: int) -> Moment:
    return moment[start:end] if isinstance(moment, Tensor) else moment.part(start, end)


def _read(moment: Moment, code: Code) -> Tensor:
    """(N,) fp32."""
    return moment if isinstance(moment, Tensor) else decode(moment, code)


def _write(moment: Moment, values: Moment) -> None:
    """Replaces the values of a moment by others of its kind."""
    for old, new in zip(_tensors(moment), _tensors(values), strict=True):
        old.copy_(new)


def _tensors(moment: Moment) -> tuple[Tensor, ...]:
    return (moment,) if isinstance(moment, Tensor) else moment


def _part(value: Tensor, entry: Entry) -> Tensor:
    """An entry's slice of a tensor that is shaped as its parameter: a view."""
    return value if entry.index is None else value[entry.index]
