"""Model families: what a name on the command line or in a checkpoint stands for.

A family is a config dataclass, a builder and presets; the tests run over all of them. Adding one is an entry of
``FAMILIES``: the config counts itself (``ModelConfig``), the model takes a ``Batch`` and returns its named losses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ringmoe import modality
from ringmoe.config import from_dict
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe import presets as ringmoe_presets
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.moe.parallel import ExpertParallel

__all__ = ["FAMILIES", "PRESETS", "Family", "ModelConfig", "build_model", "config_from", "family_of", "preset"]

_SMALL = 1 << 24  # parameters: what has fewer takes no memory that is worth a check


class ModelConfig(Protocol):
    """What every family's config can tell without building anything."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Keys of the modalities, in the order of the batch."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of the input in pixels."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        ...

    def num_params(self) -> int:
        """Parameters of the whole model."""
        ...

    def num_weights(self) -> int:
        """Those that the family's paper counts."""
        ...

    def num_active_params(self, key: str) -> int:
        """Parameters that an image of one modality uses."""
        ...

    def flops_per_image(self, key: str) -> int:
        """Floating-point operations of a forward pass over one image of one modality."""
        ...

    def variants(self) -> Mapping[str, "ModelConfig"]:
        """The sub-models and compressed models that it can become, by name; the first is the whole."""
        ...


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: Its name in checkpoints.
        config: The config dataclass.
        build: Makes the (empty) model of a config for some expert-parallel ranks.
        presets: Configs by name.
    """

    name: str
    config: type[Any]
    build: Callable[[Any, ExpertParallel | None], nn.Module]
    presets: Mapping[str, Callable[[], ModelConfig]]


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="ringmoe",
            config=RingMoEConfig,
            build=RingMoE,
            presets={
                "tiny": ringmoe_presets.tiny,
                "small": ringmoe_presets.small,
                "swin-88m": ringmoe_presets.swin_88m,
                "swin-88m-dense": ringmoe_presets.swin_88m_dense,
                "ringmoe-1b": ringmoe_presets.ringmoe_1b,
                "ringmoe-6b": ringmoe_presets.ringmoe_6b,
                "ringmoe-14b": ringmoe_presets.ringmoe_14b,
            },
        ),
    )
}

PRESETS: dict[str, Callable[[], ModelConfig]] = {
    name: make for family in FAMILIES.values() for name, make in family.presets.items()
}


def preset(name: str) -> ModelConfig:
    """The config of a preset.

    Raises:
        ConfigError: No such preset; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)} (ringmoe models shows their sizes)")
    return PRESETS[name]()


def family_of(config: ModelConfig) -> Family:
    """The family that a config belongs to.

    Raises:
        ConfigError: It belongs to none.
    """
    for family in FAMILIES.values():
        if type(config) is family.config:
            return family
    raise ConfigError(f"{type(config).__name__} is the config of no known model; known are {', '.join(FAMILIES)}")


def build_model(config: ModelConfig, parallel: ExpertParallel | None = None) -> nn.Module:
    """The model of a config, its parameters empty (see ``ringmoe.layers.init.initialise``).

    Args:
        config: Of any family.
        parallel: The ranks that share the experts; None for one process that holds them all.

    Raises:
        ConfigError: The experts cannot be spread over so many ranks.
    """
    return family_of(config).build(config, parallel)


def config_from(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The config in a checkpoint's ``config.json``, whose modalities become known with it.

    Args:
        values: Contents of the file: ``family``, ``model`` and ``inputs``.
        where: What is being read, for messages.

    Raises:
        ConfigError: Unknown family or setting, or a modality that is registered with other fields.
    """
    name = values.get("family")
    if name not in FAMILIES:
        raise ConfigError(f"{where}: unknown model family {name!r}; known are {', '.join(FAMILIES)}")
    try:
        specs = [dict(given["spec"]) for given in values.get("inputs", {}).values()]
        model = values["model"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} lacks what a model or its inputs are ({error!r}): was it written by hand?"
        ) from error
    for spec in specs:
        modality.register(modality.ModalitySpec.from_dict(spec))
    config: ModelConfig = from_dict(FAMILIES[name].config, model, where=f"{where}: model")
    return config


def check_stored(config: ModelConfig, num_bytes: int, where: str) -> None:
    """Checks that weights may be a model's before the model takes memory: no weight is stored in less than a byte.

    Of a small model this is not asked, so that whoever loads it can say which tensors it lacks.

    Args:
        config: What the checkpoint says of the model.
        num_bytes: Size of its files of weights.
        where: The checkpoint, for messages.

    Raises:
        ConfigError: The model would be larger than what is stored.
    """
    values = [value for given in vars(config).values() for value in (given if isinstance(given, tuple) else (given,))]
    largest = max(value for value in values if isinstance(value, int))
    # in this order: to count the weights of a billion experts would take the memory that is to be spared
    most = max(num_bytes, _SMALL)
    if largest > most or config.num_blocks > most or config.num_params() > most:
        raise ConfigError(f"{where} describes a model that is larger than the {num_bytes:,} bytes of its weights")
