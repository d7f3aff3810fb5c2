"""Activation checkpointing: blocks forget their inner activations and compute them again for the backward pass.

The only importer of fairscale. Its wrapper replaces a module's forward in place, so parameters keep their names.
"""

from collections.abc import Iterable

from fairscale.nn.checkpoint import checkpoint_wrapper
from torch import nn

from ringmoe.errors import ConfigError


def recompute_blocks(model: nn.Module, paths: Iterable[str]) -> None:
    """Has the named modules compute their activations twice instead of keeping them. Losses and gradients stay as are.

    Args:
        model: The model, changed in place.
        paths: Dotted paths of modules whose forward takes and returns tensors, numbers and None, alone or in a tuple.

    Raises:
        ConfigError: The model has no module of that path.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise ConfigError(f"nothing to recompute at {path!r}: the model has no such module")
        checkpoint_wrapper(modules[path])
