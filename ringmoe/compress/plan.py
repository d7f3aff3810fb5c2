"""The plan: what compression will do to each layer and what the result will weigh, before anything is read or written.

Everything here is arithmetic on configs and usage statistics; a plan for 14.7 billion parameters takes milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from ringmoe.compress import ep, kc, weighting
from ringmoe.compress.ep_loss import LossIncrease
from ringmoe.compress.extensions import Extensions
from ringmoe.config import from_dict, to_dict
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage

Mode = Literal["extract", "ep", "ks", "ka", "kc"]
DENSE_MODES: tuple[Mode, ...] = ("ks", "ka", "kc")
TITLES: dict[Mode, str] = {
    "extract": "sub-model",
    "ep": "expert pruning",
    "ks": "knowledge summing",
    "ka": "knowledge averaging",
    "kc": "knowledge compressing",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for.

    Attributes:
        mode: ``extract`` a sub-model, prune its experts (``ep``), or merge them by sum (``ks``), mean (``ka``) or
            truncated SVD (``kc``).
        modalities: What the result shall understand; empty is all that the model understands, if that is one.
        rule: Which collaborative experts stay, for ``ep``.
        rank: Which singular values stay, for ``kc`` (see ``kc.rank``).
        keep_decoders: Keep the decoders, for continued pre-training and for evaluation by reconstruction.
        extensions: What goes beyond the paper.
    """

    mode: Mode
    modalities: tuple[str, ...] = ()
    rule: ep.PruningRule = field(default_factory=ep.PruningRule)
    rank: kc.RankRule | int = "small-side"
    keep_decoders: bool = False
    extensions: Extensions = field(default_factory=Extensions)

    def __post_init__(self) -> None:
        """Checks the mode, for callers without a command line, and what the extensions do in it.

        Raises:
            ConfigError: There is no such mode, or an extension does nothing in it.
        """
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode is {self.mode!r}; it may be {', '.join(get_args(Mode))}")
        self.extensions.check(self.mode)
        if self.extensions.choose_by == "loss" and self.rule.kind != "top":
            raise ConfigError(
                "--percentile and --threshold speak of frequencies: with --choose-by loss say how many stay (--keep)"
            )

    @property
    def needs_usage(self) -> bool:
        """Whether the plan is decided by how often experts are used."""
        return self.extensions.weigh_by_usage or (self.mode == "ep" and self.extensions.choose_by == "frequency")


@dataclass(frozen=True, kw_only=True)
class MergedExpert:
    """One expert that goes into a layer's FFN.

    Attributes:
        name: Its name within the layer.
        rank: The rank that it keeps; None: all.
        weight: What it is multiplied by; 1 in the paper.
    """

    name: str
    rank: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What happens to the experts of one block.

    Attributes:
        block: Number of the block.
        dim: Width of its tokens.
        kept: Collaborative experts that stay, by original id.
        dropped: Collaborative experts that are deleted.
        merged: Experts that become one FFN; empty where experts stay experts.
        frequencies: f(E^C_k | x_m) for each modality (Eq. 15), by ascending id over kept and dropped ones together.
        increases: Where experts are chosen by loss: how much each modality's masked error grows without each of them.
        params_before: Parameters of the experts of the chosen modalities.
        params_after: Parameters of the experts that are left.
    """

    block: int
    dim: int
    kept: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    merged: tuple[MergedExpert, ...] = ()
    frequencies: dict[str, tuple[float, ...]]
    increases: dict[str, tuple[float, ...]] = field(default_factory=dict)
    params_before: int
    params_after: int


@dataclass(frozen=True, kw_only=True)
class LedgerColumn:
    """The parameters of one stage of the compression.

    Attributes:
        title: The whole model, the sub-model, the result.
        parts: Parameters of each part.
        weights: Matrices of FFNs, attention and merging alone: what the paper's sizes count.
    """

    title: str
    parts: dict[str, int]
    weights: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class CompressionPlan:
    """Everything that will be done; JSON of it is stored with the result.

    Attributes:
        options: What was asked for; its modalities are spelt out.
        usage: What frequencies (or losses) were measured on; None where none were needed, or none were at hand.
        calibration: The tiles that layers are calibrated on; None where none are needed, or none are at hand.
        source: The model that is compressed.
        result: The model that comes out.
        blocks: What happens to each block.
        ledger: Parameters of the whole model, of the sub-model and of the result.
    """

    options: Options
    usage: str | None
    calibration: str | None = None
    source: RingMoEConfig
    result: RingMoEConfig
    blocks: tuple[BlockPlan, ...]
    ledger: tuple[LedgerColumn, ...]

    @property
    def is_provisional(self) -> bool:
        """Sizes are right, but which experts stay, or what they weigh, is not known for want of statistics."""
        return (self.options.mode == "ep" or self.options.extensions.weigh_by_usage) and self.usage is None

    def check_decided(self) -> None:
        """Refuses to carry out a provisional plan.

        Raises:
            ConfigError: The plan is provisional.
        """
        if self.is_provisional and self.options.extensions.weigh_by_usage:
            raise ConfigError(
                "what each expert weighs is not decided: give --usage FILE, or --shards FOLDER to measure it"
            )
        if self.options.extensions.needs_tiles and self.calibration is None:
            raise ConfigError(
                f"{self.options.extensions}: this is measured on tiles; give --shards FOLDER, those that the model "
                "was trained on"
            )
        if self.is_provisional:
            raise ConfigError(
                "which experts stay is not decided: give --usage FILE, or --shards FOLDER to measure how often each is "
                "used"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = to_dict(self)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str = "plan") -> "CompressionPlan":
        """Rebuilds a plan from plain values.

        Raises:
            ConfigError: Not a plan.
        """
        return from_dict(cls, values, where=where)


def make_plan(
    source: RingMoEConfig,
    options: Options,
    usage: Usage | None = None,
    *,
    losses: LossIncrease | None = None,
    calibration: str | None = None,
) -> CompressionPlan:
    """Decides what stays, goes and merges in every block, and counts the result.

    Args:
        source: The model that is to be compressed.
        options: What is asked for.
        usage: Load statistics, for ``ep``. Without them the plan of a single modality by the rule ``top`` is
            provisional: its sizes are right, the experts it names are placeholders.
        losses: What each expert is worth, for ``ep`` by loss.
        calibration: The tiles of extensions that need some, in words.

    Raises:
        ConfigError: The model cannot be compressed in this way; the message says why and what can be done.
    """
    sub_model = _sub_model(source, options)
    options = replace(options, modalities=sub_model.modalities)
    if not options.needs_usage:
        usage = None
    elif usage is not None:
        check_usage(source, usage)
    blocks = tuple(_block_plan(sub_model, options, block, usage, losses) for block in range(source.num_blocks))
    if options.extensions.whiten and all(e.rank in (None, block.dim) for block in blocks for e in block.merged):
        raise ConfigError(f"--whiten does nothing here: --rank {options.rank} truncates nothing; leave one of them out")
    result = sub_model
    if options.mode == "ep" and any(block.dropped for block in blocks):
        result = sub_model.pruned([block.kept for block in blocks])
    elif options.mode in DENSE_MODES:
        result = sub_model.dense()
    names = " + ".join(sub_model.modalities)
    columns = [_column("whole model", source), _column(f"{names}, all experts", sub_model)]
    if options.mode != "extract":
        columns.append(_column(f"{names}, {options.mode}", result))
    return CompressionPlan(
        options=options,
        usage=usage.source if usage else losses.source if losses else None,
        calibration=calibration if options.extensions.needs_tiles else None,
        source=source,
        result=result,
        blocks=blocks,
        ledger=tuple(columns),
    )


def _sub_model(source: RingMoEConfig, options: Options) -> RingMoEConfig:
    """The part of the model that the asked modalities use (Section 3.4), once the request makes sense."""
    keys = options.modalities
    if not keys:
        if len(source.modalities) > 1:
            raise ConfigError(
                f"the model understands {', '.join(source.modalities)}; say which the result shall: --modality "
                f"{source.modalities[0]}"
            )
        keys = source.modalities
    sub_model = source.for_modalities(keys)
    if options.mode in DENSE_MODES and not source.num_routed:
        raise ConfigError("the model is dense already: there are no experts to merge")
    if options.mode == "ep" and not source.num_collaborative:
        raise ConfigError("the model has no collaborative experts: there is nothing to prune")
    if options.keep_decoders and not source.decoders:
        raise ConfigError("the model has no decoders to keep: it was made for use, not for pre-training")
    return replace(sub_model, decoders=options.keep_decoders)


def check_usage(source: RingMoEConfig, usage: Usage) -> None:
    """Refuses statistics of another model, which would prune the wrong experts.

    Raises:
        ConfigError: They have other layers or experts.
    """
    found = (len(usage.counts), usage.num_specialised, usage.num_routed - usage.num_specialised)
    expected = (source.num_blocks, source.num_specialised, source.num_collaborative)
    if found != expected:
        raise ConfigError(
            "the usage statistics are of another model: they have {} layers, {} specialised and {} collaborative "
            "experts, the model has {}, {} and {}".format(*found, *expected)
        )


def _block_plan(
    sub_model: RingMoEConfig, options: Options, block: int, usage: Usage | None, losses: LossIncrease | None
) -> BlockPlan:
    ids = sub_model.collaborative_ids(block)
    kept = ids
    merged: tuple[MergedExpert, ...] = ()
    frequencies: dict[str, tuple[float, ...]] = {}
    increases = {key: losses.by_block[block][key] for key in options.modalities} if losses is not None else {}
    if options.mode == "ep" and ids:
        if usage is not None:
            for key in options.modalities:
                by_id = usage.collaborative(block, key)
                frequencies[key] = tuple(by_id[k] for k in ids)
        if usage is None and losses is None:
            kept = ids[: _num_provisional(options, len(ids))]
        else:
            kept = ep.union(increases or frequencies, ids, options.rule)
    elif options.mode in DENSE_MODES:
        kept, merged = (), _merged_experts(sub_model, options, block, usage)
    num_specialised = len(sub_model.modalities) * sub_model.num_specialised
    num_before = num_specialised + len(ids) + sub_model.shared
    num_after = 1 if merged else num_specialised + len(kept) + sub_model.shared
    dim = sub_model.dims[sub_model.stage_of(block)]
    per_expert = 2 * sub_model.mlp_ratio * dim**2 + (sub_model.mlp_ratio + 1) * dim
    return BlockPlan(
        block=block,
        dim=dim,
        kept=kept,
        dropped=() if merged else tuple(k for k in ids if k not in kept),
        merged=merged,
        frequencies=frequencies,
        increases=increases,
        params_before=num_before * per_expert,
        params_after=num_after * per_expert,
    )


def _num_provisional(options: Options, num_experts: int) -> int:
    """How many experts of a layer will stay, where that follows from the rule alone."""
    if options.rule.kind != "top" or len(options.modalities) > 1:
        raise ConfigError(
            f"keeping {options.rule} of {', '.join(options.modalities)} depends on usage statistics even in number: "
            "give --usage FILE, or --shards FOLDER to measure them"
        )
    return options.rule.num_kept(num_experts)


def _merged_experts(
    sub_model: RingMoEConfig, options: Options, block: int, usage: Usage | None
) -> tuple[MergedExpert, ...]:
    """The experts that Eqs. 11 and 17 add up, with their ranks (Eq. 9); the shared expert keeps all of its own."""
    dim = sub_model.dims[sub_model.stage_of(block)]
    ids = sub_model.collaborative_ids(block)

    def family(names: Sequence[str], num_experts: int) -> list[MergedExpert]:
        if options.mode != "kc" or not names:
            return [MergedExpert(name=name) for name in names]
        rank = kc.rank((dim, sub_model.mlp_ratio * dim), num_experts, options.rank)
        return [MergedExpert(name=name, rank=rank) for name in names]

    specialised = [f"specialised.{m}.{k}" for m in sub_model.modalities for k in range(sub_model.num_specialised)]
    collaborative = [f"collaborative.{k}" for k in ids]
    shared = ["shared"] if sub_model.shared else []
    merged = (
        *family(specialised, sub_model.num_specialised),
        *family(collaborative, len(ids)),
        *(MergedExpert(name=name) for name in shared),
    )
    if usage is None:
        return merged
    selected = weighting.frequencies(usage, block, options.modalities, [expert.name for expert in merged])
    return tuple(
        replace(expert, weight=weight) for expert, weight in zip(merged, weighting.weights(selected), strict=True)
    )


def _column(title: str, config: RingMoEConfig) -> LedgerColumn:
    return LedgerColumn(title=title, parts=config.params(), weights=config.num_weights())
