"""A compressed model beside the one that it was made of: speed, error of every layer, masked reconstruction.

Nothing here ends a finished compression: what cannot be measured is said, with the reason, and the rest is measured.
Both models compute in float32. How much is measured is bounded by operations, whatever the size of the model.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ringmoe import counter, modality
from ringmoe.batch import Batch, ModalityImages, Routing
from ringmoe.checkpoint.disk import readable_size
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.clock import REST, clock_of
from ringmoe.compress import usage
from ringmoe.compress.memory import available_bytes
from ringmoe.compress.plan import CompressionPlan
from ringmoe.compress.walk import views
from ringmoe.data.layout import Split
from ringmoe.data.loader import DataConfig, Loader
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import ConfigError, RingMoEError, ShardError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE, RingMoEBlock
from ringmoe.moe.usage import Usage
from ringmoe.naming import canonical_entries
from ringmoe.train.contract import check_inputs
from ringmoe.train.evaluate import HeldOut, evaluate
from ringmoe.train.loaders import whole_tiles_loader

# L layers, T tokens, D width

BEFORE, AFTER = "before", "after"

_MOST_TILES, _FEWEST_TILES = 64, 8  # of each modality
_MASKS = 2  # of each tile, for reconstruction
_WORK = 1e13  # operations that tiles may take, unless the fewest take more
_TURN_WORK = 2e10  # operations of one turn of a speed measurement, unless one image takes more
_MOST_IMAGES = 8  # of one turn
_FEWEST_TURNS, _MOST_TURNS, _SECONDS = 5, 25, 4.0
_SPARE_BYTES = 256 * 1024**2  # of memory, for all but weights

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Speed:
    """How long the encoders took, in turns: one pass of the one, one of the other, and again.

    Attributes:
        num_images: Images of one pass.
        seconds: Of each turn after the first, for those models that were measured: ``BEFORE`` and ``AFTER``.
    """

    num_images: int
    seconds: dict[str, list[float]]


@dataclass
class Findings:
    """What was measured; what is not in here has its reason in ``missing``.

    Attributes:
        usage: How often experts are selected.
        speeds: By modality.
        machine: Where they were measured and in which state it was, in words.
        tiles: What was shown to the models, in words.
        layer_errors: Error of what each layer adds, as a share of what the sparse layer adds.
        errors: Masked reconstruction by model and modality.
        beside: Other results, by what they are called.
        missing: What was not measured, and why: ``BEFORE``, ``AFTER``, ``tiles``, ``reconstruction``, and what stands
            beside by what it is called.
    """

    usage: Usage | None = None
    speeds: dict[str, Speed] = field(default_factory=dict)
    machine: str = ""
    tiles: str = ""
    layer_errors: list[float] = field(default_factory=list)
    errors: dict[str, dict[str, HeldOut]] = field(default_factory=dict)
    beside: dict[str, "Judged"] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """What tiles say of a result; empty where they say nothing.

    Attributes:
        layer_errors: See ``Findings``.
        errors: Masked reconstruction by modality.
    """

    layer_errors: list[float]
    errors: dict[str, HeldOut]


def measure(
    plan: CompressionPlan,
    source: CheckpointReader,
    result: CheckpointReader,
    shards: Sequence[Location] = (),
    *,
    remote: RemoteConfig | None = None,
    known: Usage | None = None,
    beside: Mapping[str, tuple[CompressionPlan, CheckpointReader]] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Findings:
    """Measures all that can be measured.

    Args:
        plan: How the result was made.
        source: What it was made of.
        result: The result.
        shards: Tiles to judge by: those that were kept out of training, or, where there are none, training tiles.
        remote: How shards are read that are URLs.
        known: Usage statistics, which need not be measured then.
        beside: Other results of the same source for the same modalities, by what they are called; they are judged by
            tiles, but their speed is not measured.
        device: Where the models compute.
        progress: Called with what is done, how much of it, and how much that is in all.
    """
    found, where = Findings(usage=known, machine=_machine(torch.device(device))), torch.device(device)
    keys, others, say = plan.options.modalities, beside or {}, progress or (lambda _what, _done, _total: None)
    num_steps = len(keys) + 2 + len(others)
    say("measuring", 0, num_steps)
    models = _load(plan, source, result, where, found)
    with ExitStack() as stack:
        loader, batches = _tiles(plan, source, shards, remote, found), list[Batch]()
        if loader is not None:
            stack.enter_context(closing(loader))
            with _noting(found, "tiles"):
                batches = list(loader.sequential(_MOST_IMAGES, at_most=_num_tiles(plan)))
        for number, key in enumerate(keys if models else (), start=1):
            found.speeds[key] = speed(models, _images(plan.result, key, batches), key)
            say("measuring", number, num_steps)
        sparse = models.get(AFTER if plan.options.mode == "extract" else BEFORE)
        if found.usage is None and batches and sparse is not None:
            on_device = (batch.to(where) for batch in batches)
            found.usage = usage.measure(sparse, on_device, source=found.tiles)
        say("measuring", len(keys) + 1, num_steps)
        if loader is not None and batches:
            judge = _Judge(plan, models.get(BEFORE), loader, batches)
            with _noting(found, "reconstruction"):
                for name, model in models.items():
                    judged = judge(model)
                    found.errors |= {name: judged.errors} if judged.errors else {}
                    found.layer_errors = judged.layer_errors if name == AFTER else []
            for number, (name, (made, reader)) in enumerate(others.items(), start=len(keys) + 2):
                with _noting(found, name):
                    model = _loaded(replace(made.result, decoders=plan.source.decoders), reader, source, where)
                    found.beside[name] = judge(model)
                say("measuring", number, num_steps)
    if not plan.source.decoders:
        found.missing["reconstruction"] = "the checkpoint has no decoders"
    say("measuring", num_steps, num_steps)
    return found


class _Judge:
    """Tiles that models are judged by; called with one model after the other."""

    def __init__(self, plan: CompressionPlan, sparse: RingMoE | None, loader: Loader, batches: Sequence[Batch]) -> None:
        self._plan, self._sparse, self._loader, self._batches = plan, sparse, loader, batches

    def __call__(self, model: RingMoE) -> Judged:
        layers, errors = list[float](), dict[str, HeldOut]()
        if self._sparse is not None and model is not self._sparse:
            layers = layer_errors(self._sparse, model, self._batches)
        if self._plan.source.decoders:
            device, num_tiles = next(model.parameters()).device, _num_tiles(self._plan)
            options = {"masks": _MASKS, "batch": _MOST_IMAGES, "tiles": num_tiles}
            errors = evaluate(model, self._loader, device=device, **options)
        return Judged(layers, errors)


def encoder(config: RingMoEConfig) -> RingMoEConfig:
    """A model without its decoders: what is used, and what speed and operations are told of."""
    return replace(config, decoders=False)


@torch.no_grad()
def layer_errors(sparse: RingMoE, made: RingMoE, batches: Sequence[Batch]) -> list[float]:
    """Relative error of what each layer adds to its input, behind its norm, on the sparse model's tokens.

    Args:
        sparse: The model with all its experts.
        made: What it became: as many layers, as wide, of the same modalities.
        batches: Tiles; each is shown whole, and under one mask.
    """
    device = next(sparse.parameters()).device
    wrong_L, right_L = torch.zeros(2, sparse.config.num_blocks, dtype=torch.float64)

    def note(layer: int, inputs: tuple[Tensor, tuple[int, ...]], output: tuple[Tensor, Routing]) -> None:
        block, theirs = sparse.blocks[layer], made.blocks[layer]
        assert isinstance(block, RingMoEBlock)
        assert isinstance(theirs, RingMoEBlock)
        true_TD = block.norm2(output[0])
        made_TD = theirs.norm2(theirs.moe(*inputs[:2])[0])
        wrong_L[layer] += (made_TD - true_TD).square().sum(dtype=torch.float64).cpu()
        right_L[layer] += true_TD.square().sum(dtype=torch.float64).cpu()

    hooks = []
    for layer, block in enumerate(sparse.blocks):
        assert isinstance(block, RingMoEBlock)
        hooks.append(block.moe.register_forward_hook(lambda _m, inputs, output, at=layer: note(at, inputs, output)))
    try:
        for batch in batches:
            for key, images, masked in views(batch.to(device), 1):
                sparse.features(images, key, masked=masked)
    finally:
        for hook in hooks:
            hook.remove()
    errors: list[float] = (wrong_L / right_L).sqrt().tolist()
    return errors


@torch.inference_mode()
def speed(models: Mapping[str, RingMoE], images: ModalityImages, key: str) -> Speed:
    """Passes of the encoders over the same images, in turns, after one of each that does not count."""
    device = next(next(iter(models.values())).parameters()).device
    images, clock = images.to(device), clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(1 + _MOST_TURNS):
        spent = sum(map(sum, seconds.values()))
        if turn > _FEWEST_TURNS and spent > _SECONDS:
            break
        for name, model in models.items():
            clock.start()
            model.features(images, key)
            passed = clock.stop()[REST]
            if turn:
                seconds[name].append(passed)
    return Speed(len(images.sample_ids), seconds)


def _load(
    plan: CompressionPlan, source: CheckpointReader, result: CheckpointReader, device: torch.device, found: Findings
) -> dict[str, RingMoE]:
    """Those of the two models that fit into memory, both with the source's decoders."""
    sub_model = replace(plan.source.for_modalities(plan.options.modalities), decoders=plan.source.decoders)
    wanted = {AFTER: (replace(plan.result, decoders=plan.source.decoders), result)}
    if plan.options.mode == "extract":
        found.missing[BEFORE] = "a sub-model computes what the whole model computes, there is nothing to compare"
    else:
        wanted[BEFORE] = (sub_model, source)
    models = {}
    for name, (config, reader) in wanted.items():
        with _noting(found, name):
            models[name] = _loaded(config, reader, source, device)
    return {name: models[name] for name in (BEFORE, AFTER) if name in models}


@torch.no_grad()
def _loaded(config: RingMoEConfig, reader: CheckpointReader, source: CheckpointReader, device: torch.device) -> RingMoE:
    """A model with the weights of one checkpoint, and those that it lacks of the source.

    Raises:
        ConfigError: It does not fit into memory.
        CheckpointError: A weight cannot be read.
    """
    needed, available = 4 * config.num_params() + _SPARE_BYTES, _available(device)
    if available is not None and needed > available:
        raise ConfigError(
            f"about {readable_size(needed)} of memory are needed in float32, {readable_size(available)} are there"
        )
    model, inside = RingMoE(config), set(reader.names)
    for entry in canonical_entries(model):
        entry.tensor.copy_((reader if entry.name in inside else source).tensor(entry.name))
    return model.to(device).eval()


def _available(device: torch.device) -> int | None:
    return available_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


def _tiles(
    plan: CompressionPlan,
    source: CheckpointReader,
    shards: Sequence[Location],
    remote: RemoteConfig | None,
    found: Findings,
) -> Loader | None:
    """Tiles to judge by; None where there are none, and then the reason is noted."""
    if not shards:
        found.missing["tiles"] = "no shards were given"
        return None
    folders = ", ".join(map(str, shards))
    data = DataConfig(shards=tuple(shards), remote=remote or RemoteConfig(), bad_tiles=0)
    with _noting(found, "tiles"):
        loader, split = _open(data, plan.source.for_modalities(plan.options.modalities))
        try:
            check_inputs(source.config, loader, ours=f"checkpoint {source.path}", theirs=f"shards {folders}")
        except RingMoEError:
            loader.close()
            raise
        num = min((*loader.num_samples.values(), _num_tiles(plan)))
        kept = "kept out of training" if split == "val" else "of training, for these shards keep none out of it"
        found.tiles = f"{num} tiles of each modality of {folders}, {kept}"
        return loader
    return None


@contextmanager
def _noting(found: Findings, what: str) -> Iterator[None]:
    """What fails inside is not measured, and its words are the reason."""
    try:
        yield
    except RingMoEError as error:
        found.missing[what] = str(error)


def _open(data: DataConfig, config: RingMoEConfig) -> tuple[Loader, Split]:
    """Tiles that were kept out of training, or, where shards have none, those that train."""
    try:
        return whole_tiles_loader(data, config, split="val"), "val"
    except ShardError:
        return whole_tiles_loader(data, config, split="train"), "train"


def _images(config: RingMoEConfig, key: str, batches: Sequence[Batch]) -> ModalityImages:
    """Images of one pass: tiles where there are some, else noise; fewer, the larger the model."""
    num = max(1, min(_MOST_IMAGES, int(_TURN_WORK / config.flops_per_image(key))))
    size, channels = config.image_size, modality.get(key).num_channels
    tiles = next((batch.images[key] for batch in batches if key in batch.images), None)
    keys_B = counter.mix(torch.full((num,), counter.key("speed", key)), torch.arange(num))
    pixels_BCHW = counter.normal(keys_B, channels * size**2).view(num, channels, size, size)
    if tiles is not None:
        pixels_BCHW = tiles.pixels_BCHW[torch.arange(num) % len(tiles.pixels_BCHW)]
    present_BC = torch.ones(num, channels, dtype=torch.bool)
    return ModalityImages(pixels_BCHW, present_BC, keys_B, tuple(f"{key}/{n}" for n in range(num)))


def _num_tiles(plan: CompressionPlan) -> int:
    """Tiles of each modality whose passes through both models stay within what they may take."""
    keys = plan.options.modalities
    once = sum(config.flops_per_image(key) for config in (plan.source, plan.result) for key in keys)
    return max(_FEWEST_TILES, min(_MOST_TILES, int(_WORK / ((_MASKS + 2) * once))))


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, float32, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return (
        f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores, "
        f"{threads} thread{'s' if threads > 1 else ''}, float32, torch {torch.__version__}; load before measuring "
        f"{os.getloadavg()[0]:.1f}"
    )
