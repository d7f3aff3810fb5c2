"""The engine's JSON file, checked against the run before anything starts.

The file says how the engine works (ZeRO stage, offload, buckets); the run says what is trained (batch, precision,
clipping, optimiser). What both say must agree; what the file leaves out or calls ``"auto"`` the run fills in.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ringmoe.errors import ConfigError

LEAN = "lean"  # where an engine is chosen: the one that has no file (``ringmoe.distributed.lean``)
FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"

# what a file may hold; the engine would ignore a misspelt one in silence
_KNOWN = frozenset(
    {
        "bf16",
        "comms_logger",
        "communication_data_type",
        "data_types",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "memory_breakdown",
        "optimizer",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
_SECTIONS = frozenset({"bf16", "data_types", "fp16", "optimizer", "zero_optimization"})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine needs to know of a run.

    Attributes:
        file: Path of the engine's JSON file, or the name of one in ``ds_configs`` (``zero1``).
        dtype: Type of weights and activations; masters, moments and sums of gradients are fp32 in either case.
        micro_batch: Images of one rank's micro-batch, all modalities together.
        accumulation: Micro-batches of one optimiser step.
        clip: Global gradient norm above which gradients are scaled down; 0 switches clipping off.
        lr: Learning rate until ``set_lr`` is called.
        betas: AdamW's decay of the running mean and of the running square of the gradient.
        eps: Added by AdamW to the root of the running square.
    """

    file: str = "zero1"
    dtype: Literal["bf16", "fp32"] = "bf16"
    micro_batch: int = 1
    accumulation: int = 1
    clip: float = 1.0
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value outside its range.
        """
        if self.micro_batch < 1 or self.accumulation < 1:
            raise ConfigError(
                f"micro-batch {self.micro_batch} and accumulation {self.accumulation} must both be at least 1"
            )
        if self.clip < 0:
            raise ConfigError(f"clip {self.clip} is a gradient norm: give a positive one, or 0 for no clipping")


def read_engine_file(file: str) -> dict[str, Any]:
    """The content of an engine file.

    Args:
        file: Its path, or the name of one in ``ds_configs`` with or without ``.json``.

    Raises:
        ConfigError: There is no such file, or it does not hold a JSON object.
    """
    places = (Path(file), FOLDER / file, FOLDER / f"{file}.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
        raise ConfigError(
            f"no engine file {file!r}: give the path of a JSON file, or one of {names}; or {LEAN}, without a file"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"engine file {path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"engine file {path}: expected an object of settings, found {type(values).__name__}")
    return values


def check_engine_file(values: Mapping[str, Any], config: EngineConfig, world: int) -> dict[str, Any]:
    """Holds the engine's file against the run and fills in what it leaves to the run.

    Args:
        values: Content of the file.
        config: What the run says.
        world: Ranks of the job.

    Returns:
        What DeepSpeed is given: complete, without an optimiser section (the run brings its own).

    Raises:
        ConfigError: File and run contradict each other, or the file asks for what cannot work; with the remedy.
    """
    where = f"engine file {config.file!r}"
    _refuse_unknown(values, where)
    _refuse_stage(values, where)
    _refuse_precision(values, config, where)
    _refuse_optimizer(values, config, where)
    settled = copy.deepcopy(dict(values))
    settled.pop("optimizer", None)
    settled.pop("fp16", None)
    batch = config.micro_batch * config.accumulation * world
    wanted: dict[str, tuple[Any, str]] = {
        "train_micro_batch_size_per_gpu": (config.micro_batch, "the run's micro-batch"),
        "gradient_accumulation_steps": (config.accumulation, "the run's accumulation"),
        "train_batch_size": (batch, f"micro-batch x accumulation x {world} ranks"),
        "gradient_clipping": (config.clip, "the run's clip"),
        "bf16.enabled": (config.dtype == "bf16", f"the run's dtype {config.dtype}"),
        "zero_optimization.compute_grad_norm": (True, "the gradient norm that every run reports"),
        # torch's fused AdamW is as quick on the CPU as DeepSpeed's, which would have to be compiled first
        "zero_force_ds_cpu_optimizer": (False, "the run's own AdamW"),
    }
    if config.accumulation > 1:
        wanted["data_types.grad_accum_dtype"] = ("fp32", "the sum over several micro-batches")
    for path, (value, source) in wanted.items():
        _settle(settled, path, value, source, where)
    for path in _left_open(settled):
        raise ConfigError(f'{where}: {path} is "auto", which the run cannot fill in: give a value or leave it out')
    return settled


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if name not in _KNOWN:
            near = get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(_KNOWN))}"
            raise ConfigError(f"{where}: {name!r} is not a setting that RingMoE trains with; {hint}")
        if name in _SECTIONS and not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {name} is {json.dumps(value)}; expected an object of settings")


def _refuse_stage(values: Mapping[str, Any], where: str) -> None:
    stage = values.get("zero_optimization", {}).get("stage", 0)
    reasons = {
        0: "clips by a wrong norm when experts are spread over ranks, and keeps no fp32 masters to save",
        3: "cannot hold experts that are spread over ranks",
    }
    if stage not in (1, 2):
        reason = reasons.get(stage, "is unknown")
        raise ConfigError(f"{where}: ZeRO stage {stage} {reason}: set zero_optimization.stage to 1 or 2")


def _refuse_precision(values: Mapping[str, Any], config: EngineConfig, where: str) -> None:
    if values.get("fp16", {}).get("enabled", False) not in (False, "auto"):
        raise ConfigError(
            f"{where}: fp16 is not supported (no faster than fp32 on CPUs, and it needs loss scaling): remove the "
            f"section, the run trains in {config.dtype}"
        )


def _refuse_optimizer(values: Mapping[str, Any], config: EngineConfig, where: str) -> None:
    section = values.get("optimizer")
    if section is None:
        return
    if section.get("type", "AdamW") != "AdamW":
        raise ConfigError(f"{where}: optimizer {section['type']} but the run trains with AdamW: remove the section")
    ours = {"lr": config.lr, "betas": list(config.betas), "eps": config.eps}
    for name, value in section.get("params", {}).items():
        if value != "auto" and value != ours.get(name, "auto"):
            wanted = f"{ours[name]}" if name in ours else "for each tensor in its own way"
            raise ConfigError(
                f'{where}: optimizer {name} {value} but the run sets it {wanted}: remove the section, or write "auto"'
            )


def _settle(values: dict[str, Any], path: str, wanted: Any, source: str, where: str) -> None:
    """Writes ``wanted`` at a dotted path where nothing or ``"auto"`` stands; anything else must equal it."""
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    found = values.get(name, "auto")
    if found not in ("auto", wanted):
        raise ConfigError(
            f"{where}: {path} is {json.dumps(found)} but {source} makes it {json.dumps(wanted)}: remove it from the "
            "file (the run fills it in) or change the run"
        )
    values[name] = wanted


def _left_open(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of what still says ``"auto"``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _left_open(value, f"{prefix}{name}.")
        elif value == "auto":
            yield prefix + name
