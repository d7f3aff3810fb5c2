"""Measures all claims, or those of some families, and writes them down.

    python benchmarks/run.py                              # all
    python benchmarks/run.py --only moe_layer encoder     # these; the others stay as they were measured

Each family has a process of its own. Its figures go to ``benchmarks/results/latest.json`` when it is done, and from
there into the tables of ``docs/performance.md``.
"""

import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import page
import tyro
from harness import CONSOLE, Claim, collect, to_json
from machine import cpu_model, facts

FAMILIES = (
    "moe_layer",
    "moe_profile",
    "moe_skew",
    "moe_memory",
    "block",
    "expert_parallel",
    "training_step",
    "encoder",
    "loader",
    "lossless",
    "whole_loader",
    "order",
    "remote",
    "tiler",
    "building",
    "saving",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        only: Files of the families, without ``.py``; all if none is named.
    """

    only: tuple[str, ...] = ()


def measure(family: str) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """Title, claims and profiles of a family, in the process that calls."""
    module = import_module(family)
    found = collect(module.claims())
    values = [to_json(module.FAMILY, each) for each in found]
    is_claim = [isinstance(each, Claim) for each in found]
    claims = [value for value, yes in zip(values, is_claim, strict=True) if yes]
    return module.FAMILY, claims, [value for value, yes in zip(values, is_claim, strict=True) if not yes]


def main(settings: Settings) -> None:
    """Measures, family by family, and keeps what is done."""
    results = _earlier(settings.only)
    for number, family in enumerate(families := settings.only or FAMILIES, start=1):
        CONSOLE.rule(f"{number}/{len(families)} {family}")
        begun = time.monotonic()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            title, claims, profiles = alone.submit(measure, family).result()
        for key, values in (("claims", claims), ("profiles", profiles)):
            results[key] = [value for value in results[key] if value["family"] != title] + values
        results["seconds"][title] = round(time.monotonic() - begun)
        page.RESULTS.parent.mkdir(exist_ok=True)
        page.RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        CONSOLE.print(f"  {results['seconds'][title]} s", highlight=False)
    page.write()
    judged = [claim["met"] for claim in results["claims"] if claim["target"]]
    CONSOLE.print(f"{sum(judged)} of {len(judged)} targets met; {page.RESULTS}, {page.DOCS}", highlight=False)


def _earlier(only: Sequence[str]) -> dict[str, Any]:
    """What was measured before and stays.

    Raises:
        SystemExit: It was measured on another machine.
    """
    if not only or not page.RESULTS.exists():
        return {"machine": facts(), "claims": [], "profiles": [], "seconds": {}}
    results: dict[str, Any] = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    if results["machine"]["CPU"] != cpu_model():
        raise SystemExit(f"{page.RESULTS} is of a {results['machine']['CPU']}; measure all claims here, without --only")
    return results


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
