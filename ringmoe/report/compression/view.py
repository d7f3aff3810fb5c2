"""What the page of a compressed model shows, as plain values. What is None or empty was not measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# L layers, M modalities, E experts that one modality may choose from


@dataclass(frozen=True, kw_only=True)
class Column:
    """Parameters of one model: the whole one, the sub-model, the result.

    Attributes:
        title: Which.
        parts: By kind.
        weights: Matrices of FFNs, attention and merging alone: what the paper's sizes count.
        num_bytes: At the width of the checkpoint's numbers.
        flops: Of a forward pass over one image, by modality; nothing for modalities that it does not have.
        active: Parameters that an image of a modality uses.
    """

    title: str
    parts: Mapping[str, int]
    weights: int
    num_bytes: int
    flops: Mapping[str, int]
    active: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second of the encoders, a value for each turn.

    Attributes:
        key: The modality.
        num_images: Images of one pass.
        before: Of the sub-model with all its experts.
        after: Of the result.
    """

    key: str
    num_images: int
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as fast the result was, turn by turn."""
        return tuple(after / before for before, after in zip(self.before, self.after, strict=False))


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Who uses which expert.

    Attributes:
        counts: (L, M, E) tokens of modality m that selected expert e in layer l.
        modalities: Keys of the M modalities.
        num_specialised: N_S, where the collaborative family begins.
        gone: Layer and number of each collaborative expert that was pruned.
        source: What was counted, in words.
    """

    counts: Sequence[Sequence[Sequence[int]]]
    modalities: tuple[str, ...]
    num_specialised: int
    gone: frozenset[tuple[int, int]] = frozenset()
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of one matrix of an expert.

    Attributes:
        matrix: ``W1`` or ``W2``.
        expert: Its name within the layer.
        places: Which singular values are told, 1 being the largest; the last one is the rank that stays.
        values: The values, as shares of the largest.
        energy: Share of the squared norm that stays.
    """

    matrix: str
    expert: str
    places: tuple[int, ...]
    values: tuple[float, ...]
    energy: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What became of one block's experts.

    Attributes:
        number: Of the block.
        dim: Width of its tokens, which is the number of singular values of its matrices.
        params: Parameters of the experts before and after.
        scales: Norm of each merged matrix beside the shared expert's, by matrix.
        energies: Least share that a truncated expert's matrix retains, by matrix.
        excess: Most by which the error of a truncation may exceed the optimum.
        calibration_error: Relative error of what the layer adds, on the tiles that it was calibrated on.
        error: The same on the tiles to judge by.
        spectra: Of its truncated matrices.
    """

    number: int
    dim: int
    params: tuple[int, int]
    scales: Mapping[str, float]
    energies: Mapping[str, float]
    excess: float | None
    calibration_error: float | None
    error: float | None
    spectra: tuple[Spectrum, ...]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Mean squared error on masked pixels.

    Attributes:
        key: The modality.
        num_tiles: Tiles that were judged.
        baseline: Of predicting each tile's visible mean.
        before: Of the sub-model with all its experts.
        after: Of the result.
    """

    key: str
    num_tiles: int
    baseline: float
    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one way of compressing makes of this model.

    Attributes:
        title: Which.
        params: Its parameters without decoders; None where they depend on what is not known.
        weights: Matrices alone.
        num_bytes: On disk.
        flops: Of one image, the mean over the modalities.
        why: Where the size is not known: the reason.
        rates: Images per second by modality, where they were measured.
        errors: Masked error by modality, where it was measured.
        layer_error: Mean relative error of its layers, where it was measured.
        is_result: Whether this is the model that the page is about.
    """

    title: str
    params: int | None = None
    weights: int | None = None
    num_bytes: int | None = None
    flops: float | None = None
    why: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    layer_error: float | None = None
    is_result: bool = False


@dataclass(frozen=True, kw_only=True)
class View:
    """All of the page.

    Attributes:
        name: What the result is called.
        what: What was done, in words.
        facts: How it was made.
        modalities: What it understands.
        columns: Sizes, from the whole model to the result.
        disk: Bytes of the weights' files, of the source and of the result.
        speeds: One for each modality.
        machine: Where they were measured.
        heat: Who uses which expert.
        layers: What became of each block.
        tiles: What the models were judged by.
        reconstruction: One for each modality.
        variants: All ways of compressing.
        missing: What was not measured, and why, in words.
    """

    name: str
    what: str
    facts: Mapping[str, str]
    modalities: tuple[str, ...]
    columns: tuple[Column, ...]
    disk: tuple[int, int]
    speeds: tuple[Speed, ...]
    machine: str
    heat: Heat | None
    layers: tuple[Layer, ...]
    tiles: str
    reconstruction: tuple[Reconstruction, ...]
    variants: tuple[Variant, ...]
    missing: Mapping[str, str]
