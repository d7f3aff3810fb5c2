"""Times one RMoE layer, forward and backward, beside a plain loop over experts, DeepSpeed's MoE and the bare products.

    python benchmarks/moe_layer.py                            # the claims
    python benchmarks/moe_layer.py --cells "d 448, T 1024"    # those of them that these words are part of
    python benchmarks/moe_layer.py --grid out.jsonl           # all 72 settings, hours; the same command continues

All of them compute Eq. 3 on the same tokens with the same weights, each in a process of its own, in turns, on one
thread; times are CPU times. Every turn has other tokens, as in training. The limit is six dense products of as many
operations as the active experts have, into memory that is there already: what the machine needs for the arithmetic
alone. Freed memory stays in the process for all of them, as in a run on CPUs. Our gates draw noise, DeepSpeed's do not.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from math import exp, log
from pathlib import Path

import tyro
from contestants import Cell, peers, seat
from harness import Claim, Found, Seats, claim, collect, progress, to_json

FAMILY = "RMoE layer"
GUARD = Cell("fp32", 256, 1024)  # what the performance test measures again
# cell, and the target over the limit
CELLS = {
    Cell("bf16", 448, 8192): "<= 1.35",
    Cell("fp32", 256, 8192): "<= 1.3",
    GUARD: "",
    Cell("bf16", 256, 1024): "",
    Cell("bf16", 256, 8192, top_k=2): "",
    Cell("bf16", 256, 8192, mixed=False): "",
    Cell("bf16", 448, 1024, mixed=False): "",
    Cell("fp32", 448, 1024): "",
    Cell("fp32", 256, 1024, mixed=False): "",
    Cell("bf16", 448, 1024, top_k=2): "",
    Cell("bf16", 896, 1024): "",
    Cell("bf16", 896, 1024, mixed=False): "",
}
# those of few tokens first: what takes minutes comes before what takes an hour
GRID = [
    Cell(dtype, dim, tokens, top_k, mixed)
    for tokens, dim, dtype, top_k, mixed in product(
        (1024, 8192, 32768), (256, 448, 896), ("fp32", "bf16"), (1, 2), (True, False)
    )
]
_SMALL = 3e10  # operations of a cell up to which it takes more turns


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        cells: Only settings that these words are part of.
        grid: A file for all 72 settings instead of the claims, one JSON line for each claim; those in it are left out.
    """

    cells: str = ""
    grid: Path | None = None


def measure(seats: Seats, cell: Cell, target: str = "") -> list[Claim]:
    """Our layer over the limit, and its peers over our layer.

    Args:
        seats: Where the contestants work.
        cell: The setting.
        target: Of the time over the limit.

    Raises:
        RuntimeError: The plain loop and our layer do not agree: then there is nothing to compare.
    """
    flops = 48 * cell.dim**2 * cell.tokens * (2 * cell.top_k + 1)
    rounds, warm_up = (7, 3) if flops < _SMALL else (5, 1) if target else (3, 1)
    makers = {name: partial(seat, cell, name) for name in peers("limit", "plain loop")}
    seconds = seats.take_turns(makers, rounds, warm_up=warm_up)
    found = [claim("ours / limit", str(cell), seconds["ours"], seconds["limit"], target)]
    for peer in ("plain loop", "DeepSpeed"):
        if peer in seconds:
            found.append(claim(f"{peer} / ours", str(cell), seconds["ours"], seconds[peer], ">= 1"))
    if "DeepSpeed" in seconds:
        found.append(claim("DeepSpeed / limit", str(cell), seconds["limit"], seconds["DeepSpeed"]))
    return found


def claims(words: str = "") -> Iterator[Found]:
    """All claims of the family."""
    ratios = []
    chosen = sorted((cell for cell in CELLS if words in str(cell)), key=lambda cell: (cell.dim, cell.tokens))
    # a run has one width: memory that was kept for another one would be in pieces
    for _, cells in groupby(progress(chosen, FAMILY), key=lambda cell: cell.dim):
        with Seats() as seats:
            for cell in cells:
                found = measure(seats, cell, CELLS[cell])
                ratios += [each for each in found if each.name == "DeepSpeed / ours"]
                yield from found
    if not words and ratios:
        yield _mean(ratios)


def _mean(ratios: list[Claim]) -> Claim:
    """The geometric mean over all cells."""
    ours, peer = (
        [exp(sum(log(value) for value in values) / len(values))]
        for values in zip(*((each.ours, each.ours * each.ratio) for each in ratios), strict=True)
    )
    return claim("DeepSpeed / ours", f"geometric mean of {len(ratios)} settings", ours, peer, ">= 1.3")


def grid(path: Path, words: str) -> None:
    """Measures the settings that are not in the file yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["setting"] for line in path.read_text().splitlines()} if path.exists() else set()
    left = [cell for cell in GRID if words in str(cell) and str(cell) not in done]
    for _, cells in groupby(progress(left, "grid"), key=lambda cell: (cell.tokens, cell.dim)):
        with Seats() as seats:
            for cell in cells:
                lines = [json.dumps(to_json(FAMILY, each)) for each in collect(measure(seats, cell))]
                with path.open("a") as file:  # all claims of a setting at once: an interrupted one is measured again
                    file.write("".join(f"{line}\n" for line in lines))


def main(settings: Settings) -> None:
    """Measures and prints."""
    if settings.grid is None:
        collect(claims(settings.cells))
    else:
        grid(settings.grid, settings.cells)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
