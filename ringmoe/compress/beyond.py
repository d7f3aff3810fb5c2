"""Carrying out a plan that goes beyond the paper: layers merged on calibration tokens, healed at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ringmoe.checkpoint.disk import writing
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter, remove
from ringmoe.compress import card
from ringmoe.compress.apply import Made, Merge, make, shapes
from ringmoe.compress.calibration import Tiles, load_whole
from ringmoe.compress.ffn import PARTS
from ringmoe.compress.heal import Healing, fill, heal, stream
from ringmoe.compress.layers import Layers, MergedLayer
from ringmoe.compress.memory import require_memory
from ringmoe.compress.plan import BlockPlan, CompressionPlan
from ringmoe.compress.refit import require_tokens
from ringmoe.compress.save import REPORT_FILE, Progress, check, documents, verify
from ringmoe.compress.walk import Walk
from ringmoe.data.workfolder import take_lock
from ringmoe.errors import CheckpointError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE


def save(
    plan: CompressionPlan,
    reader: CheckpointReader,
    out: Path,
    tiles: Tiles | None,
    progress: Progress | None = None,
) -> tuple[dict[str, Merge], Healing | None]:
    """Carries out a plan with extensions and writes the result, which appears under its name once it is complete.

    An interruption leaves nothing: what a layer becomes depends on the tokens that all before it have seen.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for.
        out: Folder of the result; it must not exist.
        tiles: Calibration tiles, for a plan that needs some.
        progress: Called with what is done, how much of it, and how much that is in all.

    Returns:
        What merging did to each weight matrix, by name, and what healing did. Healing changes what was merged: then
        there is nothing to say of the matrices.

    Raises:
        ConfigError: See ``save.check``, there are too few tiles, or memory is short.
        CheckpointError: See ``save.check``, ``save.verify`` and ``heal``, another process makes the same result, a
            decomposition fails, or the disk filled up on the way.
    """
    require_enough(plan, tiles)
    with _alone(out):
        check(plan, reader, out)
        verify(plan, reader, progress)
        say = progress or (lambda _what, _done, _total: None)
        tensors, healing = _made(plan, reader, tiles, say)
        merges: dict[str, Merge] = {}
        with CheckpointWriter(out) as writer:
            for each in tensors:
                writer.add(each.name, each.tensor)
                if each.merge is not None:
                    merges[each.name] = each.merge
            config, report = documents(plan, reader, merges)
            report |= {"healing": healing._asdict()} if healing else {}
            text = card.card(plan, report["source"], name=out.name, has_inputs=bool(config["inputs"]))
            writer.commit(config=config, step=reader.manifest.step, documents={REPORT_FILE: report}, card=text)
    return merges, healing


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds a lock beside a result, which no other process makes meanwhile; what a crash has left of it is deleted.

    Raises:
        CheckpointError: Another process makes it, or the folder cannot be written.
    """
    path = out.with_name(f"{out.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        with writing(path):
            is_ours = take_lock(file)
        if not is_ours:
            raise CheckpointError(f"{out} is in the hands of another process that makes it; wait for that one")
        try:
            remove(out.with_name(f"{out.name}.tmp"))
            yield
        finally:
            path.unlink(missing_ok=True)


def _made(
    plan: CompressionPlan, reader: CheckpointReader, tiles: Tiles | None, say: Progress
) -> tuple[Iterator[Made], Healing | None]:
    """The result's tensors in the order of its modules; see ``save``."""
    extensions = plan.options.extensions
    walk = None
    if extensions.walks:
        assert tiles is not None, "a plan that needs tiles is decided with them"
        walk = Walk(tiles.config, reader, tiles.batches(), masks=extensions.masks, sequential=extensions.sequential)
    merged = _merged(plan, reader, Layers(plan, reader, walk) if extensions.by_layer else None, say)
    if not extensions.heal:
        return merged, None
    assert tiles is not None, "a plan that needs tiles is decided with them"
    student = RingMoE(plan.result)
    types = fill(student, merged)
    healing = heal(
        student,
        load_whole(tiles.config, reader),
        tiles.steps(extensions.heal),
        judges=tiles.batches,
        masks=extensions.masks,
        progress=lambda step: say("healing", step, extensions.heal),
        steps=extensions.heal,
    )
    return stream(student, types), healing


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
    merge = merged.merges.get(attribute)
    if merge is not None and reference == "shared":
        merge = replace(merge, scale=(tensor.norm() / reader.tensor(source).float().norm()).item())
    return Made(name, tensor.to(getattr(torch, reader.manifest.tensors[source].dtype)), merge)


def require_enough(plan: CompressionPlan, tiles: Tiles | None) -> None:
    """Refuses too few calibration tokens and too little memory, which can be known before anything is read.

    Raises:
        ConfigError: A refit has fewer tokens than hidden units, whitening fewer than ranks, or memory is short.
    """
    extensions = plan.options.extensions
    for block in plan.blocks:
        if tiles is None:  # a plan that needs some is not decided then
            break
        num_views = tiles.num_tiles * len(plan.options.modalities) * (1 + extensions.masks)
        num_tokens = num_views * plan.source.map_size(plan.source.stage_of(block.block)) ** 2
        if extensions.refit:
            hidden = plan.source.mlp_ratio * block.dim
            require_tokens(f"refit of {hidden} hidden units", hidden, num_tokens)
        if extensions.whiten:
            rank = max((expert.rank or 0) for expert in block.merged)
            require_tokens(f"whitened truncation at rank {rank}", rank, num_tokens)
    require_memory(str(extensions), needed_memory(plan))


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
