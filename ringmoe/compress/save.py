"""Saving what compression made: an ordinary checkpoint of a smaller config, with the plan and what was measured.

The result is made in parts of bounded size, each a job of its own: they are made side by side, and those that are
finished survive an interruption (see ``work``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from ringmoe.checkpoint.disk import require_space
from ringmoe.checkpoint.store import CONFIG_FILE, CheckpointReader, ShareWriter
from ringmoe.compress import card
from ringmoe.compress.apply import Merge, check_finite, make, shapes, sources
from ringmoe.compress.plan import CompressionPlan
from ringmoe.compress.work import Part, Work, check_folder, digest_of
from ringmoe.compress.workers import each, num_cores
from ringmoe.config import to_dict
from ringmoe.errors import CheckpointError, ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig

REPORT_FILE = "compression.json"
_PART_BYTES = 128 * 1024**2  # a part is closed before it would grow beyond this (one tensor always fits)
_MEMORY_BYTES = 4 * 1024**3  # for all processes together, where the largest tensors allow it
_PROCESS_BYTES = 512 * 1024**2  # of a process before the first tensor
_SMALL_BYTES = 2 * 1024**3  # sources that are read sooner than further processes begin
_BYTE_STEPS = 100  # reading, adding and writing a number take as long as so many columns of a truncation

Device = Literal["auto", "cpu", "cuda"]

# Called with what is done (``verifying``, or the mode), how much of it, and how much that is in all.
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the work may use.

    Attributes:
        device: Where experts are merged: ``auto`` is a GPU where there is one.
        workers: Processes side by side; None is one for each core, as far as they fit into 4 GiB, and a single one
            for small models and on a GPU.
    """

    device: Device = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        """Checks what is there.

        Raises:
            ConfigError: No workers, or a GPU that is not there.
        """
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"{self.workers} worker processes; expected at least 1")
        if self.torch_device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("there is no GPU that torch can use; leave --device out, or give --device cpu")

    @property
    def torch_device(self) -> str:
        """The device by its name in torch."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def num_workers(self, plan: CompressionPlan, reader: CheckpointReader) -> int:
        """Processes for a plan."""
        if self.workers is not None:
            return self.workers
        item = item_bytes(reader)
        source_bytes = item * sum(prod(reader.manifest.tensors[name].shape) for name in needed(plan))
        if self.torch_device != "cpu" or source_bytes < _SMALL_BYTES:
            return 1
        # a sum in float64, one source, its panels, factors and Gram matrix
        largest = max(map(prod, shapes(plan.result).values())) * (8 + item + 6)
        fitting = (_MEMORY_BYTES - _PROCESS_BYTES) // (_PROCESS_BYTES + largest)
        return max(1, min(num_cores(), fitting))


def needed_bytes(plan: CompressionPlan, reader: CheckpointReader) -> int:
    """Bytes that the result takes on disk, headers and JSON files included."""
    return plan.result.num_params() * item_bytes(reader) + 1024 * len(shapes(plan.result)) + 2**20


def item_bytes(reader: CheckpointReader) -> int:
    """Bytes of one parameter of a checkpoint; of the widest type where they differ."""
    dtypes = {reader.manifest.tensors[name].dtype for name in reader.names}
    return max(int(getattr(torch, dtype).itemsize) for dtype in dtypes)


def needed(plan: CompressionPlan) -> list[str]:
    """The checkpoint's tensors that a plan reads, each once."""
    return [source for name in shapes(plan.result) for source in sources(plan, name)]


def check(plan: CompressionPlan, reader: CheckpointReader, out: Path) -> int:
    """Everything that can be known before anything is read or written.

    Returns:
        Bytes that are still to be written: what an interrupted run has finished is not made again.

    Raises:
        ConfigError: The plan is provisional.
        CheckpointError: ``out`` exists, the disk is too full, the checkpoint's tensors are not those of its own
            config, or there is unfinished work of another plan.
    """
    plan.check_decided()
    check_source(plan.source, reader, out)
    finished = check_folder(out, digest_of(plan, reader, parts_of(plan, reader)))
    left = max(0, needed_bytes(plan, reader) - finished)
    require_space(out.parent, left)
    return left


def check_source(source: RingMoEConfig, reader: CheckpointReader, out: Path) -> None:
    """What can be known before there is a plan.

    Raises:
        CheckpointError: ``out`` exists, or the checkpoint's tensors are not those of its own config.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another name or delete it")
    expected = shapes(source)
    missing = expected.keys() - set(reader.names)
    if missing:
        raise CheckpointError(
            f"{reader.path} lacks {len(missing)} tensors that its config.json promises: "
            f"{', '.join(sorted(missing)[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    for name, shape in expected.items():
        found = reader.manifest.tensors[name].shape
        if found != shape:
            raise CheckpointError(f"{reader.path}: {name} is {found} but its config.json says {shape}")


def verify(plan: CompressionPlan, reader: CheckpointReader, progress: Progress | None = None) -> None:
    """Reads every file that a plan needs once: checksums, and that all weights are numbers.

    Raises:
        CheckpointError: Names the file that is damaged, or the tensor that is not finite.
    """
    names: dict[str, list[str]] = {}
    for name in needed(plan):
        names.setdefault(reader.manifest.tensors[name].file, []).append(name)
    total, done = sum(reader.manifest.files[file].bytes for file in names), 0
    for file, inside in names.items():
        reader.verify((file,))
        for name in inside:  # the file is still in memory
            check_finite(reader, name, reader.tensor(name))
        done += reader.manifest.files[file].bytes
        if progress is not None:
            progress("verifying", done, total)


def save(
    plan: CompressionPlan,
    reader: CheckpointReader,
    out: Path,
    progress: Progress | None = None,
    resources: Resources | None = None,
) -> dict[str, Merge]:
    """Carries out a plan and writes the result, which appears under its name once it is complete.

    The source is verified before anything is written. What is finished when the work is interrupted is kept in
    ``OUT.work``, and the same call continues there.

    Args:
        plan: What to do.
        reader: The checkpoint that the plan was made for.
        out: Folder of the result; it must not exist.
        progress: Called after each file that was verified and each part that was made.
        resources: Device and processes.

    Returns:
        What merging did to each weight matrix, by name.

    Raises:
        ConfigError: See ``check``.
        CheckpointError: See ``check`` and ``verify``, or the disk filled up on the way.
    """
    resources = resources or Resources()
    check(plan, reader, out)
    verify(plan, reader, progress)
    parts = parts_of(plan, reader)
    with Work(out, digest_of(plan, reader, parts)) as work:
        for part in _made(plan, reader, parts, work, progress, resources):
            work.add(part)
        merges = {name: merge for _, part in sorted(work.finished.items()) for name, merge in part.merges.items()}
        config, report = documents(plan, reader, merges)
        text = card.card(plan, report["source"], name=out.name, has_inputs=bool(config["inputs"]))
        work.commit({CONFIG_FILE: config, REPORT_FILE: report}, reader.manifest.step, text)
    return merges


def documents(
    plan: CompressionPlan, reader: CheckpointReader, merges: Mapping[str, Merge]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result's ``config.json`` and its report: the source, the plan, and what merging did."""
    inputs = reader.config.get("inputs", {})
    config = {
        "format": reader.config["format"],
        "family": reader.config["family"],
        "model": to_dict(plan.result),
        "inputs": {key: inputs[key] for key in plan.result.modalities if key in inputs},
    }
    source = card.source_of(reader)
    return config, {"format": 1, "source": source, "plan": plan.to_dict(), "merges": to_dict(dict(merges))}


def parts_of(plan: CompressionPlan, reader: CheckpointReader) -> list[list[str]]:
    """The result's tensors, in the order of its modules, divided into parts of bounded size."""
    parts: list[list[str]] = [[]]
    num_bytes = 0
    for name, shape in shapes(plan.result).items():
        size = prod(shape) * item_bytes(reader)
        if parts[-1] and num_bytes + size > _PART_BYTES:
            parts.append([])
            num_bytes = 0
        parts[-1].append(name)
        num_bytes += size
    return parts


def _made(
    plan: CompressionPlan,
    reader: CheckpointReader,
    parts: Sequence[Sequence[str]],
    work: Work,
    progress: Progress | None,
    resources: Resources,
) -> Iterator[Part]:
    """The parts that are not finished yet, the most expensive first, so that the cores end together."""
    costs = [sum(_cost(plan, reader, name) for name in names) for names in parts]
    left = sorted(set(range(len(parts))) - work.finished.keys(), key=lambda index: -costs[index])
    done = sum(costs[index] for index in work.finished)
    job = _Job(plan, reader, parts, work.folder, resources.torch_device)
    if progress is not None:
        progress(plan.options.mode, done, sum(costs))
    for part in each(job, left, resources.num_workers(plan, reader)):
        yield part
        done += costs[part.index]
        if progress is not None:
            progress(plan.options.mode, done, sum(costs))


def _cost(plan: CompressionPlan, reader: CheckpointReader, name: str) -> float:
    """How long a tensor takes beside others: for each number a constant, and where it is truncated the short side."""
    cost = 0.0
    for source in sources(plan, name):
        shape = reader.manifest.tensors[source].shape
        truncated = plan.options.mode == "kc" and name.endswith((".w1", ".w2"))
        cost += prod(shape) * (_BYTE_STEPS + (min(shape) if truncated else 0))
    return cost


@dataclass(frozen=True)
class _Job:
    """Makes and writes one part, in whatever process."""

    plan: CompressionPlan
    reader: CheckpointReader
    parts: Sequence[Sequence[str]]
    folder: Path
    device: str

    def __call__(self, index: int) -> Part:
        """Makes the part of this number."""
        share = ShareWriter(self.folder, rank=index, world=len(self.parts))
        merges: dict[str, Merge] = {}
        for name in self.parts[index]:
            made = make(self.plan, self.reader, name, self.device)
            share.add(name, made.tensor)
            if made.merge is not None:
                merges[name] = made.merge
        return Part(index, share.close(), merges)
