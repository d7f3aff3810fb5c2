"""All that a model can become, as in Tables A1 and A16: sizes from its config alone, quality where it was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ringmoe.compress.ep import PruningRule
from ringmoe.compress.extensions import Extensions
from ringmoe.compress.plan import DENSE_MODES, TITLES, CompressionPlan, Mode, Options, make_plan
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage

# those of Tab. A1, from most to least
_RULES = (*(PruningRule("top", share) for share in (0.75, 0.5, 0.25)), PruningRule("threshold", 0.1))
_RULE_WORDS = {"top": "top {:.0%}", "percentile": "percentile {:g}", "threshold": "used by more than {:.0%}"}


SUB_MODEL = "sub-model, all experts"


@dataclass(frozen=True)
class Variant:
    """One way of compressing.

    Attributes:
        title: In words.
        config: What comes out; None where that depends on usage that is not known.
        why: Where it is not known: the reason.
    """

    title: str
    config: RingMoEConfig | None
    why: str = ""


def variants(made: Sequence[CompressionPlan], usage: Usage | None = None) -> Iterator[Variant]:
    """The whole model, every mode of the paper for its modalities, and what was made in other ways.

    Args:
        made: Plans of what was made of one model for the same modalities, at least one.
        usage: Decides the size where several modalities keep their own experts, or a frequency decides.
    """
    named = {title(plan.options): plan.result for plan in made}
    yield Variant("whole model", made[0].source)
    for options in _plain(made[0]):
        name = title(options)
        config, why = (named.pop(name), "") if name in named else _config(made[0].source, options, usage)
        yield Variant(name, config, why)
    yield from (Variant(name, config) for name, config in named.items())


def title(options: Options) -> str:
    """``EP, top 25%``, ``KC, knowledge compressing``, ``KC, W_2 and b_2 refitted``."""
    if options.mode == "extract":
        return SUB_MODEL
    details = [_RULE_WORDS[options.rule.kind].format(options.rule.value)] if options.mode == "ep" else []
    details += [f"rank {options.rank}"] if options.rank != "small-side" else []
    details += [str(options.extensions)] if str(options.extensions) else []
    return ", ".join([options.mode.upper(), *details]) if details else f"{options.mode.upper()}, {TITLES[options.mode]}"


def _plain(plan: CompressionPlan) -> Iterator[Options]:
    """What the paper compares, as far as the model has experts for it."""
    source, own = plan.source, plan.options
    modes: list[Mode] = ["extract"]
    modes += ["ep"] * len(_RULES) if source.num_collaborative else []
    modes += DENSE_MODES if source.num_routed else []
    rules = iter(_RULES)
    for mode in modes:
        rule = next(rules) if mode == "ep" else own.rule
        yield replace(own, mode=mode, rule=rule, rank="small-side", extensions=Extensions())


def _config(source: RingMoEConfig, options: Options, usage: Usage | None) -> tuple[RingMoEConfig | None, str]:
    try:
        return make_plan(source, options, usage).result, ""
    except ConfigError as error:
        if options.mode == "ep":
            return None, "depends on how often experts are used, which is not known"
        return None, str(error)
