"""What every way of compressing costs in quality, on tiles that were kept out of training.

    python benchmarks/compress_quality.py RUN SHARDS [--modality opt] [--page]

Takes a trained run (see docs/compression.md for one) and the shards it was trained on;
makes every variant of one modality's sub-model as ``ringmoe-prune`` does, calibrated on training tiles; and measures on
held-out tiles the masked squared error and, layer by layer, how far what a merged layer adds to its input (behind the
block's norm, with the sparse model's own tokens) is from what the sparse layer adds. Variants that are measured are not
measured again: an interrupted call continues. With ``--page`` the table goes into docs/compression.md.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import tyro
from page import filled
from rich.console import Console

from ringmoe.checkpoint.disk import sha256_of
from ringmoe.checkpoint.manifest import MANIFEST_FILE
from ringmoe.checkpoint.pretrained import load_model
from ringmoe.checkpoint.runs import open_checkpoint
from ringmoe.checkpoint.store import CheckpointReader
from ringmoe.compress import beyond, ep_loss, usage
from ringmoe.compress.apply import source_config
from ringmoe.compress.calibration import Tiles, load_whole, open_tiles
from ringmoe.compress.ep import PruningRule
from ringmoe.compress.extensions import Extensions
from ringmoe.compress.judge import layer_errors
from ringmoe.compress.plan import DENSE_MODES, Mode, Options, make_plan
from ringmoe.data.loader import DataConfig
from ringmoe.data.manifest import Manifest
from ringmoe.models import build_model, config_from
from ringmoe.models.ringmoe.model import RingMoE
from ringmoe.train.evaluate import evaluate
from ringmoe.train.loaders import whole_tiles_loader

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compression.md"
CONSOLE = Console(width=140)
_BYTES = 4  # of a parameter: the runs that this is for are trained in float32


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        run: Folder of a trained run or of a checkpoint.
        shards: The shards that it was trained on.
        modality: Whose sub-model is compressed.
        tiles: Calibration tiles.
        held_out: Held-out tiles.
        masks: Masks for each held-out tile.
        heal: Steps of distillation, where there is one.
        results: File of results.
        page: Put the table into docs/compression.md.
    """

    run: Annotated[Path, tyro.conf.Positional]
    shards: Annotated[Path, tyro.conf.Positional]
    modality: str = "opt"
    tiles: int = 128
    held_out: int = 200
    masks: int = 2
    heal: int = 100
    results: Path = ROOT / "benchmarks" / "results" / "compress_quality.json"
    page: bool = False


def variants(heal: int) -> Iterator[tuple[Mode, float, Extensions]]:
    """Mode, share of collaborative experts that stays, and extensions of every variant; plain ones first."""
    yield "extract", 1.0, Extensions()
    every_dense: list[dict[str, Any]] = [
        {},
        {"refit": True},
        {"align": "activations"},
        {"align": "activations", "refit": True},
        {"weigh_by_usage": True},
    ]
    for options in every_dense:
        for mode in DENSE_MODES:
            yield mode, 1.0, Extensions(**options)
    of_kc: list[dict[str, Any]] = [
        {"whiten": True},
        {"align": "weights"},
        {"whiten": True, "refit": True},
        {"refit": True, "sequential": True},
        {"heal": heal},
        {"refit": True, "heal": heal},
    ]
    for options in of_kc:
        yield "kc", 1.0, Extensions(**options)
    for share in (0.25, 0.5, 0.75):
        yield "ep", share, Extensions()
        yield "ep", share, Extensions(choose_by="loss")
    yield "ep", 0.25, Extensions(heal=heal)


def title(mode: Mode, share: float, extensions: Extensions) -> str:
    """A variant in words."""
    plain = {"extract": "sub-model, all experts", "ep": f"EP, {share:.0%} stay"}.get(mode, mode.upper())
    return f"{plain}: {extensions}" if str(extensions) else plain


def main(settings: Settings) -> None:
    """Measures what is not measured yet and writes results and table."""
    reader = open_checkpoint(settings.run)
    found = json.loads(settings.results.read_text(encoding="utf-8")) if settings.results.exists() else {}
    about = {"modality": settings.modality, "step": reader.manifest.step, "config": reader.config["model"]}
    about |= {name: getattr(settings, name) for name in ("tiles", "held_out", "masks", "heal")}
    about |= {"checkpoint": sha256_of(reader.path / MANIFEST_FILE)}
    about |= {"shards": Manifest.open(settings.shards).fingerprint}
    if found.get("about") != json.loads(json.dumps(about)):
        found = {"about": about, "variants": {}}
    with open_tiles(reader, [settings.shards], modalities=(settings.modality,), num_tiles=settings.tiles) as tiles:
        bench = _Bench(settings, reader, tiles)
        for mode, share, extensions in variants(settings.heal):
            name = title(mode, share, extensions)
            if name not in found["variants"]:
                extensions = replace(extensions, tiles=settings.tiles)
                found["variants"][name] = bench.measure(mode, share, extensions)
                settings.results.parent.mkdir(exist_ok=True)
                settings.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            CONSOLE.print(f"{name}: {_cells(found['variants'][name])}", highlight=False, soft_wrap=True)
    if settings.page:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), {"beyond": table(found)}), encoding="utf-8")


class _Bench:
    """The sparse model, its statistics, and the tiles to judge by."""

    def __init__(self, settings: Settings, reader: CheckpointReader, tiles: Tiles) -> None:
        self._settings, self._reader, self._tiles = settings, reader, tiles
        self._sparse = load_whole(tiles.config, reader).eval()
        batches = list(tiles.batches())
        self._usage = usage.measure(self._sparse, batches, source=tiles.source)
        self._losses = ep_loss.measure(self._sparse, batches, masks=1, source=tiles.source)
        self._loader = whole_tiles_loader(DataConfig(shards=(settings.shards,)), tiles.config)
        self._held_out = list(self._loader.sequential(16, at_most=settings.held_out))

    def measure(self, mode: Mode, share: float, extensions: Extensions) -> dict[str, Any]:
        """Makes a variant and measures it."""
        options = Options(
            mode=mode,
            modalities=(self._settings.modality,),
            rule=PruningRule("top", share),
            keep_decoders=True,
            extensions=extensions,
        )
        plan = make_plan(
            source_config(self._reader),
            options,
            self._usage if options.needs_usage else None,
            losses=self._losses if extensions.choose_by == "loss" else None,
            calibration=self._tiles.source,
        )
        with tempfile.TemporaryDirectory() as folder:
            beyond.save(plan, self._reader, Path(folder, "made"), self._tiles)
            made = load_model(Path(folder, "made"), lambda values: build_model(config_from(values)))
        assert isinstance(made, RingMoE)
        held_out = evaluate(
            made,
            self._loader,
            device=torch.device("cpu"),
            masks=self._settings.masks,
            batch=16,
            tiles=self._settings.held_out,
        )[self._settings.modality]
        encoder = replace(plan.result, decoders=False)
        return {
            "params": encoder.num_params(),
            "gflops": encoder.flops_per_image(self._settings.modality) / 1e9,
            "loss": held_out.model,
            "visible_mean": held_out.baseline,
            "layers": layer_errors(self._sparse, made.eval(), self._held_out) if mode in DENSE_MODES else [],
        }


def table(found: dict[str, Any]) -> str:
    """Markdown of all variants."""
    titles = (
        "variant",
        "parameters",
        "bytes",
        "GFLOP",
        "held-out error",
        "error of layers: mean",
        "each, first to last",
    )
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, each in found["variants"].items():
        params, layers = each["params"], each["layers"]
        cells = (
            name,
            f"{params / 1e6:.2f} M",
            f"{params * _BYTES / 1e6:.1f} MB",
            f"{each['gflops']:.3f}",
            f"{each['loss']:.4f}",
            f"{fmean(layers):.2f}" if layers else "",
            " ".join(f"{error:.2f}" for error in layers),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cells(each: dict[str, Any]) -> str:
    errors = " ".join(f"{error:.3f}" for error in each["layers"])
    return f"loss {each['loss']:.4f} (visible mean {each['visible_mean']:.4f}), {each['params']:,} parameters  {errors}"


if __name__ == "__main__":
    main(tyro.cli(Settings))
