"""The page of a compressed model: what was done, what it is worth, and what of that was not measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress import judge, variants
from ringmoe.compress.apply import Merge
from ringmoe.compress.card import source_of
from ringmoe.compress.judge import AFTER, BEFORE, Findings
from ringmoe.compress.plan import DENSE_MODES, TITLES, BlockPlan, CompressionPlan, check_usage
from ringmoe.compress.save import REPORT_FILE, item_bytes
from ringmoe.config import from_dict
from ringmoe.data.storage import Location, RemoteConfig
from ringmoe.errors import ConfigError
from ringmoe.models.ringmoe.config import RingMoEConfig
from ringmoe.moe.usage import Usage
from ringmoe.report.compression import render, view

USAGE_FILE = "usage.json"
_MATRICES = {"w1": "W1", "w2": "W2"}


@dataclass(frozen=True)
class Made:
    """A result of compression on disk.

    Attributes:
        plan: How it was made.
        merges: What merging did to each weight matrix.
        healing: How far its maps were from the sparse model's before and after healing.
        source: See ``card.source_of``.
    """

    plan: CompressionPlan
    merges: Mapping[str, Merge]
    healing: Mapping[str, float]
    source: Mapping[str, Any]


def open_made(result: CheckpointReader, source: CheckpointReader) -> Made:
    """What a result says of itself.

    Raises:
        CheckpointError: It is damaged.
        ConfigError: It was not made by ``ringmoe-prune``, or of another checkpoint than ``source``.
    """
    if REPORT_FILE not in result.manifest.files:
        raise ConfigError(f"{result.path} has no {REPORT_FILE}: it was not made by ringmoe-prune")
    document, where = result.document(REPORT_FILE), str(result.path / REPORT_FILE)
    made_of = document.get("source")
    if not isinstance(made_of, dict):
        raise ConfigError(f"{where} does not say what it was made of: an older version wrote it; compress again")
    expected = source_of(source)
    if made_of != expected:
        raise ConfigError(
            f"{result.path} was made of {made_of.get('name')}, not of {source.path}: name the checkpoint that it was "
            "made of"
        )
    plan = CompressionPlan.from_dict(document["plan"], where=where)
    merges = {name: from_dict(Merge, values, where=where) for name, values in document["merges"].items()}
    return Made(plan, merges, document.get("healing", {}), made_of)


def page(
    source: CheckpointReader,
    result: CheckpointReader,
    shards: Sequence[Location] = (),
    *,
    remote: RemoteConfig | None = None,
    usage: Usage | None = None,
    beside: Sequence[CheckpointReader] = (),
    device: str = "cpu",
    progress: judge.Progress | None = None,
) -> tuple[str, dict[str, str]]:
    """Measures and draws.

    Args:
        source: The checkpoint that was compressed.
        result: What it became.
        shards: Tiles to judge by, see ``judge.measure``.
        remote: How shards are read that are URLs.
        usage: How often experts are used; None for what training stored, or else what is measured.
        beside: Other results of the same source for the same modalities, for the table of variants.
        device: Where the models compute.
        progress: See ``judge.measure``.

    Returns:
        The page, which needs no other file, and what was not measured with the reasons.

    Raises:
        CheckpointError: See ``open_made``.
        ConfigError: See ``open_made``, or the usage statistics are of another model, or what is beside
            understands other modalities or was made in the same way.
    """
    made = open_made(result, source)
    others = _beside(made, result, source, beside)
    if others and not shards:
        raise ConfigError("what is beside is judged by tiles: give --shards FOLDER, too")
    known = usage or stored_usage(source)
    if known is not None:
        check_usage(made.plan.source, known)
    found = judge.measure(
        made.plan,
        source,
        result,
        shards,
        remote=remote,
        known=known,
        beside=others,
        device=device,
        progress=progress,
    )
    shown = _view(made, [plan for plan, _ in others.values()], found, source, result)
    return render(shown), dict(shown.missing)


def _beside(
    made: Made, result: CheckpointReader, source: CheckpointReader, beside: Sequence[CheckpointReader]
) -> dict[str, tuple[CompressionPlan, CheckpointReader]]:
    """Other results by what they are called in the table of variants."""
    known = {variants.title(made.plan.options): result.path}
    found = {}
    for reader in beside:
        plan = open_made(reader, source).plan
        name = variants.title(plan.options)
        if plan.options.modalities != made.plan.options.modalities:
            raise ConfigError(
                f"{reader.path} understands {', '.join(plan.options.modalities)}, {result.path} "
                f"{', '.join(made.plan.options.modalities)}: results beside each other understand the same"
            )
        if name in known:
            raise ConfigError(f"{reader.path} and {known[name]} were made in the same way ({name}): name one of them")
        known[name], found[name] = reader.path, (plan, reader)
    return found


def stored_usage(reader: CheckpointReader) -> Usage | None:
    """The load statistics that training left in a checkpoint."""
    if USAGE_FILE not in reader.manifest.files:
        return None
    return Usage.from_dict(reader.document(USAGE_FILE), where=str(reader.path / USAGE_FILE))


def _view(
    made: Made,
    others: Sequence[CompressionPlan],
    found: Findings,
    source: CheckpointReader,
    result: CheckpointReader,
) -> view.View:
    plan, width = made.plan, item_bytes(source)
    sub_model = plan.source.for_modalities(plan.options.modalities)
    configs = [plan.source, replace(sub_model, decoders=plan.options.keep_decoders), plan.result]
    titles = [column.title for column in plan.ledger]
    speeds = tuple(_speed(key, speed) for key, speed in found.speeds.items())
    errors = tuple(_errors(plan, found))
    return view.View(
        name=result.path.resolve().name,
        what=f"{TITLES[plan.options.mode]} ({plan.options.mode}) for {', '.join(plan.options.modalities)}",
        facts=_facts(made),
        modalities=plan.options.modalities,
        columns=tuple(_column(title, config, width) for title, config in zip(titles, configs, strict=False)),
        disk=(source.weight_bytes, result.weight_bytes),
        speeds=speeds,
        machine=found.machine,
        heat=_heat(plan, found.usage),
        layers=tuple(_layer(made, block, found) for block in plan.blocks),
        tiles=found.tiles,
        reconstruction=errors,
        variants=tuple(_variants([plan, *others], found, width, speeds, errors)),
        missing=_missing(made, found),
    )


def _facts(made: Made) -> dict[str, str]:
    options = made.plan.options
    step = made.source["step"]
    facts = {
        "made of": str(made.source["name"]) + ("" if step is None else f", {step:,} optimiser steps"),
        "its manifest, SHA-256": str(made.source["manifest_sha256"]),
        "collaborative experts that stay": str(options.rule) if options.mode == "ep" else "",
        "beyond the paper": str(options.extensions),
        "usage statistics": made.plan.usage or "",
        "calibrated on": made.plan.calibration or "",
    }
    if made.healing:
        facts["distance to the sparse model's maps"] = (
            f"{made.healing['before']:.4f} before healing, {made.healing['after']:.4f} after, on calibration tiles"
        )
    return {name: text for name, text in facts.items() if text}


def _column(title: str, config: RingMoEConfig, width: int) -> view.Column:
    """Sizes of a model; operations are those of the encoder, whether decoders are kept or not."""
    return view.Column(
        title=title,
        parts=config.params(),
        weights=config.num_weights(),
        num_bytes=config.num_params() * width,
        flops={key: judge.encoder(config).flops_per_image(key) for key in config.modalities},
        active={key: judge.encoder(config).num_active_params(key) for key in config.modalities},
    )


def _speed(key: str, speed: judge.Speed) -> view.Speed:
    rates = {name: tuple(speed.num_images / seconds for seconds in turns) for name, turns in speed.seconds.items()}
    return view.Speed(key=key, num_images=speed.num_images, before=rates.get(BEFORE, ()), after=rates.get(AFTER, ()))


def _heat(plan: CompressionPlan, usage: Usage | None) -> view.Heat | None:
    if usage is None:
        return None
    left = [
        block.kept if plan.options.mode == "ep" else plan.source.collaborative_ids(block.block) for block in plan.blocks
    ]
    gone = {
        (number, usage.num_specialised + k)
        for number, kept in enumerate(left)
        for k in range(plan.source.num_collaborative)
        if k not in kept
    }
    return view.Heat(
        counts=usage.counts,
        modalities=usage.modalities,
        num_specialised=usage.num_specialised,
        gone=frozenset(gone),
        source=usage.source,
    )


def _layer(made: Made, block: BlockPlan, found: Findings) -> view.Layer:
    merges = {
        _MATRICES[part]: made.merges[name]
        for part in _MATRICES
        if (name := f"blocks.{block.block}.moe.shared.{part}") in made.merges
    }
    spectra = [
        view.Spectrum(matrix=matrix, expert=name, places=each.places, values=each.values, energy=each.energy)
        for matrix, merge in merges.items()
        for name, each in merge.spectra.items()
    ]
    is_truncated = any(expert.rank not in (None, block.dim) for expert in block.merged)
    excesses = [merge.excess for merge in merges.values()]
    return view.Layer(
        number=block.block,
        dim=block.dim,
        params=(block.params_before, block.params_after),
        scales={matrix: merge.scale for matrix, merge in merges.items() if merge.scale is not None},
        energies={matrix: merge.energy for matrix, merge in merges.items()} if is_truncated else {},
        excess=max(each for each in excesses if each is not None)
        if is_truncated and excesses and None not in excesses
        else None,
        calibration_error=next((merge.error for merge in merges.values()), None),
        error=found.layer_errors[block.block] if found.layer_errors else None,
        spectra=tuple(spectra),
    )


def _errors(plan: CompressionPlan, found: Findings) -> Iterable[view.Reconstruction]:
    for key in plan.options.modalities:
        of_key = {name: results[key] for name, results in found.errors.items()}
        if of_key:
            any_of = next(iter(of_key.values()))
            yield view.Reconstruction(
                key=key,
                num_tiles=any_of.num_tiles,
                baseline=any_of.baseline,
                before=of_key[BEFORE].model if BEFORE in of_key else None,
                after=of_key[AFTER].model if AFTER in of_key else None,
            )


def _variants(
    plans: Sequence[CompressionPlan],
    found: Findings,
    width: int,
    speeds: Sequence[view.Speed],
    errors: Sequence[view.Reconstruction],
) -> Iterable[view.Variant]:
    """All ways of compressing; the first plan is the result's, others were judged beside it."""
    own, keys = variants.title(plans[0].options), plans[0].options.modalities
    for each in variants.variants(plans, found.usage):
        rates: dict[str, float] = {}
        losses: dict[str, float | None] = {}
        layers: list[float] = []
        if each.title == own:
            rates = {speed.key: median(speed.after) for speed in speeds if speed.after}
            losses, layers = {error.key: error.after for error in errors}, found.layer_errors
        elif each.title in found.beside:
            judged = found.beside[each.title]
            losses, layers = {key: held.model for key, held in judged.errors.items()}, judged.layer_errors
        elif each.title == variants.SUB_MODEL:
            rates = {speed.key: median(speed.before) for speed in speeds if speed.before}
            losses = {error.key: error.before for error in errors}
        config = judge.encoder(each.config) if each.config else None
        yield view.Variant(
            title=each.title,
            params=config.num_params() if config else None,
            weights=config.num_weights() if config else None,
            num_bytes=config.num_params() * width if config else None,
            flops=fmean(config.flops_per_image(key) for key in keys) if config else None,
            why=each.why,
            rates=rates,
            errors={key: loss for key, loss in losses.items() if loss is not None},
            layer_error=fmean(layers) if layers else None,
            is_result=each.title == own,
        )


def _missing(made: Made, found: Findings) -> dict[str, str]:
    """What was not measured, by the section of the page where it is missed."""
    plan, missing = made.plan, found.missing
    options = plan.options
    reasons = {
        "speed before": missing.get(BEFORE, ""),
        "speed after": missing.get(AFTER, ""),
        "routing": ""
        if found.usage
        else "the checkpoint stores no load statistics, and " + missing.get("tiles", missing.get(BEFORE, "")),
        "spectra": _no_spectra(made),
        "layer errors": "" if found.layer_errors else missing.get("tiles", missing.get(BEFORE, missing.get(AFTER, ""))),
        "reconstruction": missing.get("tiles", missing.get("reconstruction", "")),
        "tasks": "no downstream task was run: accuracies as in Tab. A16 are not known for this model",
    }
    own = {BEFORE, AFTER, "tiles", "reconstruction"}
    reasons |= {name: why for name, why in missing.items() if name not in own}  # of what stands beside
    if options.mode == "extract":
        reasons["layer errors"] = "nothing was merged or pruned: each layer is what it was"
    return {name: reason for name, reason in reasons.items() if reason}


def _no_spectra(made: Made) -> str:
    if any(merge.spectra for merge in made.merges.values()):
        return ""
    options = made.plan.options
    if options.mode not in DENSE_MODES:
        return "nothing was merged"
    if options.mode != "kc":
        return f"{options.mode} adds the experts up whole: no matrix was truncated, and no decomposition made"
    if options.extensions.heal:
        return "healing has changed the merged matrices since"
    if options.extensions.whiten:
        return "the truncation followed the tokens, whose directions are not the matrices' own"
    return f"--rank {options.rank} keeps full rank: nothing was truncated"
