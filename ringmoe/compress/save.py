"""Saving what compression made: an ordinary checkpoint of a smaller config, with the plan and what was measured."""

from collections.abc import Callable
from pathlib import Path

import torch

from ringmoe.checkpoint.disk import require_space
from ringmoe.checkpoint.store import CheckpointReader, CheckpointWriter
from ringmoe.compress.apply import Merge, apply, shapes
from ringmoe.compress.plan import CompressionPlan
from ringmoe.config import to_dict
from ringmoe.errors import CheckpointError

REPORT_FILE = "compression.json"


def needed_bytes(plan: CompressionPlan, reader: CheckpointReader) -> int:
    """Bytes that the result takes on disk, headers and JSON files included."""
    return plan.result.num_params() * item_bytes(reader) + 1024 * len(shapes(plan.result)) + 2**20


def item_bytes(reader: CheckpointReader) -> int:
    """Bytes of one parameter of a checkpoint; of the widest type where they differ."""
    dtypes = {reader.manifest.tensors[name].dtype for name in reader.names}
    return max(int(getattr(torch, dtype).itemsize) for dtype in dtypes)


def check(plan: CompressionPlan, reader: CheckpointReader, out: Path) -> None:
    """Everything that can be known before the first byte is written.

    Raises:
        ConfigError: The plan is provisional.
        CheckpointError: ``out`` exists, the disk is too full, or the checkpoint lacks tensors of its own config.
    """
    plan.check_decided()
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another name or delete it")
    missing = shapes(plan.source).keys() - set(reader.names)
    if missing:
        raise CheckpointError(
            f"{reader.path} lacks {len(missing)} tensors that its config.json promises: "
            f"{', '.join(sorted(missing)[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    require_space(out.parent, needed_bytes(plan, reader))


def save(
    plan: CompressionPlan, reader: CheckpointReader, out: Path, progress: Callable[[str], None] | None = None
) -> dict[str, Merge]:
    """Carries out a plan and writes the result, which appears under its name once it is complete.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for.
        out: Folder of the result; it must not exist.
        progress: Called with the name of each tensor once it is made.

    Returns:
        What merging did to each weight matrix, by name.

    Raises:
        ConfigError: See ``check``.
        CheckpointError: See ``check`` and ``apply``, or the disk filled up on the way; nothing is left behind.
    """
    check(plan, reader, out)
    merges: dict[str, Merge] = {}
    with CheckpointWriter(out) as writer:
        for made in apply(plan, reader):
            writer.add(made.name, made.tensor)
            if made.merge is not None:
                merges[made.name] = made.merge
            if progress is not None:
                progress(made.name)
        inputs = reader.config.get("inputs", {})
        config = {
            "format": reader.config["format"],
            "family": reader.config["family"],
            "model": to_dict(plan.result),
            "inputs": {key: inputs[key] for key in plan.result.modalities if key in inputs},
        }
        report = {"format": 1, "plan": plan.to_dict(), "merges": to_dict(merges)}
        writer.commit(config=config, step=reader.manifest.step, documents={REPORT_FILE: report})
    return merges
