"""A plan and its ledger as tables for people."""

from collections import Counter
from collections.abc import Mapping
from itertools import groupby

from rich.table import Table

from ringmoe.compress.apply import Merge
from ringmoe.compress.plan import DENSE_MODES, TITLES, BlockPlan, CompressionPlan


def plan_table(plan: CompressionPlan) -> Table:
    """What stays, what goes and what merges in each block, with sizes; like neighbours share a row."""
    mode = plan.options.mode
    title = f"{TITLES[mode]} ({mode}) for {', '.join(plan.options.modalities)}"
    if mode == "ep":
        title += f"; collaborative experts that stay: {plan.options.rule}"
        if plan.options.extensions.choose_by == "loss":
            title = title.replace("most used of", "most missed by")
    if beyond := str(plan.options.extensions):
        title += f"\nbeyond the paper: {beyond}"
    table = Table(title=title, title_justify="left")
    for name in ("blocks", "width"):
        table.add_column(name, justify="right")
    for name in ("experts that become one FFN",) if mode in DENSE_MODES else ("stays", "goes"):
        table.add_column(name)
    table.add_column("parameters of a block's experts", justify="right")
    rows = [(block.block, _block_cells(plan, block)) for block in plan.blocks]
    for cells, same in groupby(rows, key=lambda row: row[1]):
        numbers = [number for number, _ in same]
        table.add_row(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}", *cells)
    return table


def merge_table(plan: CompressionPlan, merges: Mapping[str, Merge]) -> Table:
    """What merging did to the size of the weights: nothing in the paper scales the sums."""
    table = Table(title="scale of the merged matrices", title_justify="left")
    names = ["block", "|W1| / |W1 shared|", "|W2| / |W2 shared|"]
    if plan.options.extensions.walks:
        names.append("output error, calibration tiles")
    for name in names:
        table.add_column(name, justify="right")
    for block in plan.blocks:
        found = [merges[f"blocks.{block.block}.moe.shared.{part}"] for part in ("w1", "w2")]
        cells = ["-" if merge.scale is None else f"{merge.scale:.2f}" for merge in found]
        cells += [] if found[-1].error is None else [f"{found[-1].error:.3f}"]
        table.add_row(str(block.block), *cells)
    return table


def ledger_table(plan: CompressionPlan, item_bytes: int) -> Table:
    """Parameters of each part before and after; sizes on disk for ``item_bytes`` a parameter."""
    table = Table(title="ledger: parameters", title_justify="left")
    table.add_column("part")
    for column in plan.ledger:
        table.add_column(column.title, justify="right")
    for part in plan.ledger[0].parts:
        table.add_row(part, *(f"{column.parts[part]:,}" for column in plan.ledger))
    table.add_section()
    table.add_row("all", *(f"[bold]{column.total:,}[/]" for column in plan.ledger))
    table.add_row("matrices alone, as in the paper", *(f"{column.weights / 1e9:.3f} B" for column in plan.ledger))
    sizes = (f"{column.total * item_bytes / 1e9:.2f} GB" for column in plan.ledger)
    table.add_row(f"on disk, {8 * item_bytes} bit", *sizes)
    return table


def _block_cells(plan: CompressionPlan, block: BlockPlan) -> tuple[str, ...]:
    sizes = f"{block.params_before / 1e6:,.2f} M -> {block.params_after / 1e6:,.2f} M"
    if block.merged:
        return str(block.dim), _merged_text(block), sizes
    num = len(block.kept) + len(block.dropped)
    goes = f"collaborative {', '.join(map(str, block.dropped))}" if block.dropped else ""
    if plan.is_provisional:
        stays, goes = f"{len(block.kept)} of {num} collaborative, by usage", f"{len(block.dropped)} of {num}"
    else:
        stays = f"collaborative {_scores_text(block)}" if num else ""
    specialised = plan.source.num_specialised * len(plan.options.modalities)
    families = [f"{specialised} specialised" if specialised else "", stays, "shared" if plan.source.shared else ""]
    return str(block.dim), ", ".join(filter(None, families)), goes, sizes


def _scores_text(block: BlockPlan) -> str:
    """Ids that stay, with how often they are selected or how much the error grows without: ``0 (opt 41 %), ...``."""
    ids = sorted(block.kept + block.dropped)
    texts = []
    for k in block.kept:
        place = ids.index(k)
        scores = [f"{key} {shares[place]:.0%}" for key, shares in block.frequencies.items()]
        scores += [f"{key} {increases[place]:+.2g}" for key, increases in block.increases.items()]
        texts.append(f"{k} ({', '.join(scores)})" if scores else str(k))
    return ", ".join(texts)


def _merged_text(block: BlockPlan) -> str:
    """Experts by family, with the rank that each keeps: ``4 specialised at rank 448, ..., shared``."""
    families = Counter((expert.name.partition(".")[0], expert.rank) for expert in block.merged)
    parts = []
    for (family, rank), num in families.items():
        text = family if family == "shared" else f"{num} {family}" + (f" at rank {rank}" if rank else "")
        weights = [expert.weight for expert in block.merged if expert.name.partition(".")[0] == family]
        parts.append(text + (f" (x {', '.join(f'{w:.2f}' for w in weights)})" if set(weights) != {1.0} else ""))
    return ", ".join(parts)
