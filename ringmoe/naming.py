"""Global names: every tensor of a model has one name that no rank, world size or expert-parallel size can change.

Ordinary parameters are known by their module path. Stacked expert weights (one parameter that holds several experts
along its first dimension) are known expert by expert: a module that holds such stacks says which experts it holds
through ``stacked_names``, and ``canonical_entries`` gives one entry for each of them, for example
``blocks.7.moe.specialised.opt.2.w1``. Checkpoints, initialisation and compression use these names only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class StackedExperts(Protocol):
    """A module whose parameters stack experts along their first dimension."""

    def stacked_names(self) -> Mapping[str, tuple[str, ...]]:
        """For each stacked parameter of this module: the name of each slice, relative to the module's parent."""
        ...


@dataclass(frozen=True)
class Entry:
    """One globally named tensor of a model.

    Attributes:
        name: Its global name.
        parameter: The local parameter that holds it.
        path: The local parameter's own dotted path.
        index: Its slice along the first dimension of a stacked parameter, or None for the whole parameter.
    """

    name: str
    parameter: nn.Parameter
    path: str
    index: int | None

    @property
    def tensor(self) -> Tensor:
        """The values: a view of the local parameter."""
        return self.parameter.data if self.index is None else self.parameter.data[self.index]


def canonical_entries(model: nn.Module) -> Iterator[Entry]:
    """All parameters of ``model`` by global name, experts one by one, in the order of the modules.

    Raises:
        ValueError: A stack has another length than its names (a fault of the module).
    """
    for path, module in model.named_modules():
        stacked = module.stacked_names() if isinstance(module, StackedExperts) else {}
        parent = path.rpartition(".")[0]
        for attribute, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{attribute}" if path else attribute
            if attribute not in stacked:
                yield Entry(full, parameter, full, None)
                continue
            names = stacked[attribute]
            if len(names) != parameter.shape[0]:
                raise ValueError(f"{full} stacks {parameter.shape[0]} experts but names {len(names)}")
            for index, name in enumerate(names):
                yield Entry(f"{parent}.{name}" if parent else name, parameter, full, index)
