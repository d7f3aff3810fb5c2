"""Puts what the kills and the soak showed into the page about reliability.

python -m tests.reliability.page FOLDER    # of the records of a run of the matrix, the soak, or both
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.reliability import soak_page
from tests.reliability.matrix import KILLS, Kill

RECORDS = "RELIABILITY_RECORDS"  # names a folder for what is seen: a file for each kill, and one of the soak
SOAK = Path(__file__).parent / "soak.json"
RESULTS = Path(__file__).parent / "kills.json"
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- kills -->\n", "<!-- /kills -->"
Record = dict[str, Any]


def table(records: Sequence[Record]) -> str:
    """A line for each kill, and one that adds them up.

    Args:
        records: What was seen of each kill, as the test writes it.
    """
    kills = {kill.name: kill for kill in KILLS}
    slowest = max((record["seconds"] for record in records), default=0.0)
    lines = [
        f"{len(records)} of the {len(KILLS)} kills were seen; the slowest job took {slowest:.1f} s to be gone.",
        "",
        "| phase | where | killed | exit code | gone after | resumed after step |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        kill = kills[record["name"]]
        codes = " and ".join(map(str, record["codes"]))
        resumed = record["resumed after"] or "none: anew"
        cells = [kill.phase, _where(kill), _killed(kill), codes, f"{record['seconds']:.1f} s", resumed]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def filled(text: str, records: Sequence[Record]) -> str:
    """The page with the table of these records."""
    return soak_page.between(text, BEGIN, END, table(records))


def _where(kill: Kill) -> str:
    words = f"`{kill.place}`" + (f", visit {kill.visit}" if kill.visit > 1 else "") + f", rank {kill.rank}"
    words += f"; `{kill.torn}` cut to half" if kill.torn else ""
    return words + ("; resumed once already" if kill.interrupted else "") + ("; beside training" if kill.beside else "")


def _killed(kill: Kill) -> str:
    victims = "`deepspeed`" if kill.victims == "the launcher" else kill.victims
    return (
        victims
        + (", by SIGTERM" if kill.signal == "SIGTERM" else "")
        + (" (under `deepspeed`)" if kill.launcher and kill.victims != "the launcher" else "")
    )


def main(folder: Path) -> None:
    """Writes what a run saw into file and page: kills that it left out keep their old record, failed ones lose it."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    new = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("[0-9]*.json")]
    of_name = {record["name"]: record for record in [*old, *new]}
    records = [of_name[kill.name] for kill in KILLS if not of_name.get(kill.name, {"failed": True}).get("failed")]
    if (seen := folder / SOAK.name).exists():
        soak_page.write(json.loads(seen.read_text(encoding="utf-8")), SOAK, PAGE)
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")
    failed = [record["name"] for record in new if record.get("failed")]
    print(
        f"{len(new) - len(failed)} kills recorded: {RESULTS}, {PAGE}", *(f"failed: {name}" for name in failed), sep="\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
