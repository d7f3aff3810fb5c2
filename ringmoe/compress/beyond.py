"""Carrying out a plan that goes beyond the paper: layers merged on calibration tokens, healed at the end."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ringmoe.checkpoint.disk import readable_size
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.compress.apply import Made, Merge, make, shapes
from ringmoe.compress.calibration import Tiles, load_whole
from ringmoe.compress.ffn import PARTS
from ringmoe.compress.heal import fill, heal, stream
from ringmoe.compress.layers import Layers, MergedLayer
from ringmoe.compress.plan import BlockPlan, CompressionPlan
from ringmoe.compress.save import REPORT_FILE, Progress, check, documents, verify
from ringmoe.compress.walk import Walk
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE


def save(
    plan: CompressionPlan,
    reader: CheckpointReader,
    out: Path,
    tiles: Tiles | None,
    progress: Progress | None = None,
) -> dict[str, Merge]:
    """Carries out a plan with extensions and writes the result, which appears under its name once it is complete.

    An interruption leaves nothing: what a layer becomes depends on the tokens that all before it have seen.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for.
        out: Folder of the result; it must not exist.
        tiles: Calibration tiles, for a plan that needs some.
        progress: Called with what is done, how much of it, and how much that is in all.

    Returns:
        What merging did to each weight matrix, by name.

    Raises:
        ConfigError: See ``save.check``, there are too few tiles, or memory is short.
        CheckpointError: See ``save.check`` and ``save.verify``, or the disk filled up on the way.
    """
    check(plan, reader, out)
    require_memory(str(plan.options.extensions), needed_memory(plan))
    verify(plan, reader, progress)
    merges: dict[str, Merge] = {}
    with CheckpointWriter(out) as writer:
        for each in made(plan, reader, tiles, progress):
            writer.add(each.name, each.tensor)
            if each.merge is not None:
                merges[each.name] = each.merge
        config, report = documents(plan, reader, merges)
        writer.commit(config=config, step=reader.manifest.step, documents={REPORT_FILE: report})
    return merges


def made(
    plan: CompressionPlan, reader: CheckpointReader, tiles: Tiles | None, progress: Progress | None = None
) -> Iterator[Made]:
    """The result's tensors in the order of its modules; see ``save``."""
    extensions, say = plan.options.extensions, progress or (lambda _what, _done, _total: None)
    walk = None
    if extensions.walks:
        assert tiles is not None, "a plan that needs tiles is decided with them"
        walk = Walk(tiles.config, reader, tiles.batches(), masks=extensions.masks, sequential=extensions.sequential)
    merged = _merged(plan, reader, Layers(plan, reader, walk) if extensions.by_layer else None, say)
    if not extensions.heal:
        yield from merged
        return
    assert tiles is not None, "a plan that needs tiles is decided with them"
    student = RingMoE(plan.result)
    found = fill(student, merged)
    heal(
        student,
        load_whole(tiles.config, reader),
        tiles.steps(extensions.heal),
        masks=extensions.masks,
        progress=lambda step: say("healing", step, extensions.heal),
        steps=extensions.heal,
    )
    yield from stream(student, found)


def _merged(plan: CompressionPlan, reader: CheckpointReader, layers: Layers | None, say: Progress) -> Iterator[Made]:
    """The result's tensors before any healing."""
    names = shapes(plan.result)
    for number, name in enumerate(names, start=1):
        layer, inside, _ = name.partition(".moe.")
        block = plan.blocks[int(layer.removeprefix("blocks."))] if inside else None
        if layers is not None and block is not None and block.merged:
            yield _of_layer(reader, block, name, layers(block))
        else:
            yield make(plan, reader, name)
        say(plan.options.mode, number, len(names))


def _of_layer(reader: CheckpointReader, block: BlockPlan, name: str, merged: MergedLayer) -> Made:
    """W_1, b_1, W_2 or b_2 of a layer that was merged as a whole."""
    layer, _, attribute = name.rpartition(".shared.")
    reference = block.merged[-1].name
    source = f"{layer}.{reference}.{attribute}"
    tensor = merged.ffn[PARTS.index(attribute)]
    merge = None
    if attribute in merged.energies:
        scale = (tensor.norm() / reader.tensor(source).float().norm()).item() if reference == "shared" else None
        merge = Merge(scale, merged.energies[attribute], error=merged.error)
    return Made(name, tensor.to(getattr(torch, reader.manifest.tensors[source].dtype)), merge)


def needed_memory(plan: CompressionPlan) -> int:
    """Bytes that a plan's extensions hold at their peak, roughly: float32 weights, tokens, sums in float64."""
    sub_model, extensions = plan.source.for_modalities(plan.options.modalities), plan.options.extensions
    peaks = [0]
    if extensions.by_layer:
        peaks.append(max(_layer_bytes(plan, sub_model, block.block) for block in plan.blocks))
    if extensions.heal:  # weights, gradients and AdamW's two means of the student
        peaks.append(4 * sub_model.num_params() + 16 * plan.result.num_params())
    return max(peaks)


def _layer_bytes(plan: CompressionPlan, config: RingMoEConfig, block: int) -> int:
    extensions, stage = plan.options.extensions, config.stage_of(block)
    dim, hidden = config.dims[stage], config.mlp_ratio * config.dims[stage]
    ffn = 2 * dim * hidden
    total = 4 * 3 * ffn + 8 * ffn  # the reference, another and its truncation; the sum in float64
    if extensions.align is not None:  # how alike units are, as it is and as the assignment takes it
        total += (4 + 8) * hidden**2 if extensions.align == "weights" else 3 * 8 * hidden**2
    if extensions.walks:
        num_views = extensions.tiles * len(config.modalities) * (1 + extensions.masks)
        num_maps = 3 if extensions.sequential else 2
        total += 4 * num_maps * num_views * config.map_size(stage) ** 2 * dim
        total += 4 * plan.blocks[block].params_before
    return total + (3 * 8 * hidden**2 if extensions.refit else 0)


def require_memory(what: str, needed: int) -> None:
    """Refuses what would not fit.

    Args:
        what: What needs the memory, for the message.
        needed: Bytes.

    Raises:
        ConfigError: Less is available.
    """
    available = available_bytes()
    if available is not None and needed > available:
        raise ConfigError(
            f"{what}: about {readable_size(needed)} of memory are needed, {readable_size(available)} are available; "
            "use fewer --calibration-tiles or options, or a larger machine"
        )


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
