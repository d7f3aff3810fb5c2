"""The soak's part of the page about reliability: what was seen in words, a table and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ringmoe.report.canvas import COLOURS, new_figure

BEGIN, END = "<!-- soak -->\n", "<!-- /soak -->"
PICTURE = "images/soak.svg"  # beside the page
NOT_SEEN = "It has not been run to its end at this length yet: there is no record of it."
Record = dict[str, Any]


def between(text: str, begin: str, end: str, content: str) -> str:
    """A text with something else between two marks."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{content}\n{end}{after}"


def filled(text: str, record: Record | None) -> str:
    """The page with what this record tells, or that there is none."""
    return between(text, BEGIN, END, told(record) if record else NOT_SEEN)


def told(record: Record) -> str:
    """What was seen: in sentences, with a line for each kill."""
    whole, killed = record["seconds"]
    grown = " and ".join(f"{growth:+.2%}" for growth in record["growth"])
    most = " and ".join(f"{max(sample[1 + rank] for sample in record['whole']):.0f} MiB" for rank in range(2))
    lines = [
        f"{record['steps']:,} steps without a kill took {whole} s, with {len(record['kills'])} kills {killed} s. "
        "Weights, moments and all rows were the same, nothing was left in `/dev/shm`, no process and no "
        f"unfinished checkpoint stayed. Over the second half the memory of the two ranks changed by "
        f"{grown}; the most they had was {most}.",
        "",
        f"![Resident memory of both ranks over the steps]({PICTURE})",
        "",
        "| step under way | where | killed | exit code | gone after | resumed after step |",
        "|---|---|---|---|---|---|",
    ]
    for kill, resumed in zip(record["kills"], record["resumed"], strict=True):
        victims = "both ranks" if len(kill["victims"]) == 2 else f"rank {kill['victims'][0]}"
        where, codes = f"`{kill['place']}`, rank {kill['rank']}", " and ".join(map(str, kill["codes"]))
        cells = [kill["step"], where, victims, codes, f"{kill['seconds']:.1f} s", resumed]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write(record: Record, results: Path, page: Path) -> None:
    """Writes file, page and picture."""
    results.write_text(json.dumps(record) + "\n", encoding="utf-8")
    page.write_text(filled(page.read_text(encoding="utf-8"), record), encoding="utf-8")
    _draw(record, page.parent / PICTURE)


def _draw(record: Record, path: Path) -> None:
    """Memory over steps: of the run without kills, and of all lives of the other one."""
    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    for rank in range(2):
        _line(axes, record["whole"], rank, linewidth=1.8, label=f"rank {rank}, no kill")
        for number, life in enumerate(record["lives"]):
            _line(axes, life, rank, linewidth=0.7, label="" if number else f"rank {rank}, killed and continued")
    for kill in record["kills"]:
        axes.axvline(kill["step"], color="0.8", linewidth=0.6, zorder=0)
    axes.set_xlabel("step (grey: kills)")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, record["steps"])
    axes.legend(loc="lower right", fontsize="small", ncols=2)
    with matplotlib.rc_context({"svg.hashsalt": "soak"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _line(axes: Any, samples: Sequence[Sequence[float]], rank: int, **style: Any) -> None:
    dashes = {"linestyle": "-" if style["linewidth"] > 1 else ":"}
    axes.plot([s[0] for s in samples], [s[1 + rank] for s in samples], color=COLOURS[rank], **dashes, **style)
