"""``ringmoe models``: every preset and what it can become, in parameters and operations, from the configs alone."""

import json
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from ringmoe.cli.console import console
from ringmoe.models import PRESETS, ModelConfig, preset


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """What to list.

    Attributes:
        json: Print machine-readable JSON instead of a table.
    """

    json: bool = False


def run(config: ModelsConfig) -> None:
    """Lists all presets: whole, of one modality, after expert pruning (EP) and dense.

    Active parameters and GFLOPs are those of a forward pass over one image of the variant's first modality.
    """
    sizes = {name: _sizes(preset(name)) for name in PRESETS}
    if config.json:
        print(json.dumps(sizes, indent=2))
    else:
        console.print(_table(sizes))


def _sizes(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """What each variant of a model holds and costs; active numbers are those of an image of its first modality."""
    found = {}
    for name, variant in config.variants().items():
        first = variant.modalities[0]
        found[name] = {
            "modalities": list(variant.modalities),
            "image_size": variant.image_size,
            "params": variant.num_params(),
            "weights": variant.num_weights(),
            "active_params": variant.num_active_params(first),
            "flops_per_image": variant.flops_per_image(first),
        }
    return found


def _table(sizes: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="weights: matrices of FFNs, attention and merging alone, the sizes that the paper gives",
    )
    for heading in ("preset", "variant"):
        table.add_column(heading, no_wrap=True)
    for heading in ("pixels", "params", "weights", "active", "GFLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, variants in sizes.items():
        for row, (variant, size) in enumerate(variants.items()):
            table.add_row(
                name if row == 0 else "",
                variant,
                str(size["image_size"]),
                *(_short(size[field]) for field in ("params", "weights", "active_params")),
                f"{size['flops_per_image'] / 1e9:.2f}",
                end_section=row == len(variants) - 1,
            )
    return table


def _short(num: int) -> str:
    """Three or four digits and a unit: 14.74 B, 6.53 B, 45.1 M."""
    return f"{num / 1e9:.2f} B" if num >= 1e9 else f"{num / 1e6:.1f} M"
