"""What a run will read of each modality and each data set, as a table."""

from collections import Counter
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ringmoe.data.loader import Loader
from ringmoe.data.storage import Folder


def mixture_table(loader: Loader, steps: int) -> Table:
    """Images of a step, epochs over the run and how often each tile is seen, of each modality and data set.

    Args:
        loader: The run's training tiles.
        steps: Optimiser steps of the whole run.
    """
    title = f"images of {steps:,} steps"
    table = Table("modality", "shards", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("tiles", "a step", "in all", "epochs", "each tile comes"):
        table.add_column(column, justify="right", no_wrap=True)
    names = _names([folder for shares in loader.mixture.values() for share in shares for folder in share.folders])
    for key, shares in loader.mixture.items():
        for share in shares:
            per_step = loader.images_per_step[key] * share.part
            images = round(per_step * steps)
            table.add_row(
                key,
                escape(" and ".join(names[folder] for folder in share.folders)),
                f"{share.num_samples:,}",
                f"{round(per_step, 2):g}",
                f"{images:,}",
                f"{epochs:,.0f}" if (epochs := images / share.num_samples) >= 100 else f"{epochs:.3g}",
                _times(images, share.num_samples),
            )
    return table


def _names(folders: Iterable[Folder]) -> dict[Folder, str]:
    """What each folder is called: its name, or its path where others have the same."""
    found = {folder: folder.name for folder in folders}
    counts = Counter(found.values())
    return {folder: name if counts[name] == 1 else str(folder) for folder, name in found.items()}


def _times(images: int, tiles: int) -> str:
    """How often a tile comes: a data set begins again when it is through, so no tile is more than once ahead."""
    whole, rest = divmod(images, tiles)
    if not rest:
        return "once" if whole == 1 else f"{whole:,} times"
    return "at most once" if not whole else f"{whole:,} or {whole + 1:,} times"
