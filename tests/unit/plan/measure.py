"""What autograd really keeps: unique storages that are saved for the backward pass, parameters excluded."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Saved:
    """Bytes by shape and type of what was saved, each storage once."""

    def __init__(self, model: nn.Module):
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._alive: list[Tensor] = []  # so that no address is used twice
        self.by_kind: Counter[str] = Counter()

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._alive.append(tensor.detach())
            self.by_kind[f"{tuple(tensor.shape)} {tensor.dtype}"] += storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return self.by_kind.total()


@contextmanager
def saved_by_autograd(model: nn.Module) -> Iterator[Saved]:
    saved = Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved
