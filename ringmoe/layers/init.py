"""First weights as pure functions of a seed and a global name.

Each tensor is drawn by a generator of its own, seeded by ``(seed, name)``. An expert therefore starts from the same
numbers on whatever rank it lives, in whatever order modules are built, and a model of one modality starts as the
corresponding part of the whole. Nothing here depends on buffers: tables that are no parameters (relative coordinates,
attention masks) are computed on demand, so a model that was built on the meta device needs ``to_empty`` and this only.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ringmoe.counter import key
from ringmoe.naming import Entry, canonical_entries

Kind = Literal["weight", "zeros", "ones", "log10"]

DRAWN_AT_ONCE = 8  # tensors at most: a thread draws 0.16 billion numbers a second, and the largest preset has 14.8

_STANDARD: dict[type[nn.Module], dict[str, Kind]] = {
    nn.Linear: {"weight": "weight", "bias": "zeros"},
    nn.LayerNorm: {"weight": "ones", "bias": "zeros"},
}
_DRAW: dict[Kind, Callable[[Tensor, torch.Generator], Tensor]] = {
    "weight": lambda x, generator: nn.init.trunc_normal_(x, std=0.02, generator=generator),
    "zeros": lambda x, _: x.zero_(),
    "ones": lambda x, _: x.fill_(1.0),
    "log10": lambda x, _: x.fill_(math.log(10.0)),  # SwinV2's first logit scale: a temperature of 0.1
}


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Sets every parameter of ``model`` from ``seed`` and its global name.

    A module says how its own parameters start through a class attribute ``init_kinds`` (parameter name to ``Kind``);
    ``nn.Linear`` (truncated normal of 0.02, zero bias) and ``nn.LayerNorm`` (one, zero) need none unless they start
    otherwise. Draws are made in float32 on the CPU whatever the model's device and type.

    Args:
        model: The model, its parameters on real storage of any device (after ``to_empty`` if built on meta).
        seed: The run's seed.

    Raises:
        TypeError: A module does not say how one of its parameters starts (a fault of the module).
    """

    def fill(entry: Entry) -> None:
        entry.tensor.copy_(_first_value(model, entry, seed))

    with ThreadPoolExecutor(_num_threads()) as pool:
        list(pool.map(fill, canonical_entries(model)))


@torch.no_grad()
def first_weights(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """What ``initialise`` would set, name by name in float32, for models that are larger than the memory.

    Args:
        model: The model, of any device: ``meta`` will do.
        seed: The run's seed.

    Raises:
        TypeError: See ``initialise``.
    """
    entries, num_threads = iter(canonical_entries(model)), _num_threads()
    with ThreadPoolExecutor(num_threads) as pool:
        while some := list(islice(entries, num_threads)):
            values = pool.map(lambda entry: _first_value(model, entry, seed), some)
            yield from zip((entry.name for entry in some), values, strict=True)


def _num_threads() -> int:
    return min(DRAWN_AT_ONCE, torch.get_num_threads())


def _first_value(model: nn.Module, entry: Entry, seed: int) -> Tensor:
    """The first value of one parameter, drawn by a generator of its own."""
    path, _, attribute = entry.path.rpartition(".")
    kind = _kind(model.get_submodule(path), attribute, entry.name)
    generator = torch.Generator().manual_seed(key("first weight", seed, entry.name))
    return _DRAW[kind](torch.empty(entry.tensor.shape), generator)


def _kind(owner: nn.Module, attribute: str, name: str) -> Kind:
    """How a parameter of ``owner`` starts: its own ``init_kinds``, or what its standard base class asks for."""
    kinds: dict[str, Kind] = dict(getattr(owner, "init_kinds", {}))
    for base, standard in _STANDARD.items():
        if isinstance(owner, base):
            kinds = standard | kinds
    if kinds.get(attribute) not in get_args(Kind):
        raise TypeError(
            f"{name}: {type(owner).__name__}.init_kinds must give {attribute!r} as one of {', '.join(get_args(Kind))}"
        )
    return kinds[attribute]
