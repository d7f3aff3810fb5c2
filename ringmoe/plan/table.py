"""Plans for people, as tables, and for machines, as plain values."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from ringmoe.config import to_dict
from ringmoe.plan.cluster import GB, Cluster
from ringmoe.plan.search import Plan


def plain(plan: Plan) -> dict[str, Any]:
    """A plan as plain values; bytes, seconds."""
    values: dict[str, Any] = to_dict(plan)
    values["memory"]["peak"] = plan.memory.peak
    values["time"]["total"] = plan.time.total
    values["setting"]["total"] = plan.setting.total
    for row, collective in zip(values["exchange"], plan.exchange, strict=True):
        row["sent"] = collective.sent
    return values


def detail_table(plan: Plan, cluster: Cluster) -> Table:
    """One plan in full: memory by kind, exchange by collective, time by part."""
    setting, memory, time = plan.setting, plan.memory, plan.time
    title = f"PREDICTED, not measured: {setting.devices} x {cluster.name}, {setting}, {setting.dtype}"
    table = Table("", "of one device", title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = "right"
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "gradients, until the step": memory.step_gradients,
        "optimiser": memory.optimiser,
        "scales of the moments": memory.scales,
        "activations, all kept": memory.activations_kept,
        "activations, experts recomputed": memory.activations_experts,
        "activations, blocks recomputed": memory.activations_blocks,
        "buckets": memory.buckets,
        "workspace": memory.workspace,
        "workspace of the step": memory.step_workspace,
        "host, while training": memory.host,
        "host, at the start": memory.host_start,
    }
    used = "all kept" if setting.recompute == "nothing" else f"{setting.recompute} recomputed"
    for name, num_bytes in rows.items():
        if name.startswith("scales") and not num_bytes:
            continue
        unused = name.startswith("activations, ") and not name.endswith(used)
        table.add_row(name, f"({_size(num_bytes)})" if unused else _size(num_bytes))
    for name, peak, usable in (
        ("peak", memory.peak, cluster.usable_bytes),
        ("peak, host", memory.host_peak, cluster.usable_host_bytes(setting.devices)),
    ):
        table.add_row(name, f"{_size(peak)}: {'fits' if peak <= usable else 'does not fit'} {_size(usable)}")
    table.add_section()
    for collective in plan.exchange:
        where = f"{collective.operation} among {collective.ranks}"
        table.add_row(f"{collective.name}, {where}", f"{_size(collective.bytes)}, sent {_size(collective.sent)}")
    table.add_section()
    for name in ("products", "memory", "optimiser", "experts", "gradients", "weights", "total"):
        table.add_row(f"time: {name}", f"{1e3 * getattr(time, name):.1f} ms")
    table.add_row("efficiency", f"{time.efficiency:.1%} of the matrix rate")
    table.add_row("images", f"{setting.total:,} in a step, {time.images_per_second:,.0f} a second")
    return table


def overview_table(plans: Sequence[Plan], cluster: Cluster, *, title: str) -> Table:
    """Plans one a line."""
    table = Table(
        title=f"PREDICTED, not measured: {title}",
        caption="memory of one device in GB (recomputed: e experts, b blocks), time in seconds",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    headings = ["ranks", "EP", "engine", "batch", "wts", "grads", "optim", "acts", "peak", "step", "img/s", "eff."]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("engine", "batch") else "right", no_wrap=True)
    for plan in plans:
        setting, memory, time = plan.setting, plan.memory, plan.time
        kinds = (memory.weights, memory.gradients, memory.optimiser + memory.scales)
        table.add_row(
            str(setting.devices),
            str(setting.expert_parallel),
            setting.engine.name,
            f"{setting.micro_batch} x {setting.accumulation}",
            *(f"{num_bytes / GB:.1f}" for num_bytes in kinds),
            f"{memory.activations / GB:.1f}" + {"nothing": "", "experts": "e", "blocks": "b"}[setting.recompute],
            f"{memory.peak / GB:.1f}" + ("" if plan.fits else "!"),
            f"{time.total:.2f}",
            f"{time.images_per_second:,.0f}",
            f"{time.efficiency:.1%}",
        )
    if not all(plan.fits for plan in plans):
        table.caption = f"{table.caption}; ! does not fit {cluster.usable_bytes / GB:.1f} GB, or the host"
    return table


def _size(num_bytes: int) -> str:
    """Three digits or more and a unit of powers of 1000."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"
