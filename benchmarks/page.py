"""Puts what was measured into the pages of the docs: tables between markers, the words around them stay."""

import json
from pathlib import Path
from statistics import geometric_mean
from typing import Any

RESULTS = Path(__file__).parent / "results" / "latest.json"
GRID = RESULTS.with_name("grid.jsonl")
COMPRESSION = RESULTS.with_name("compression.json")
DOCS = Path(__file__).parent.parent / "docs"
Values = dict[str, Any]


def sections(results: Values) -> dict[str, str]:
    """What stands between the markers of each name.

    Args:
        results: ``machine``, ``claims``, ``profiles`` and ``seconds``, as ``run.py`` writes them.
    """
    claims: list[Values] = results["claims"]
    families = dict.fromkeys(claim["family"] for claim in claims)
    found = {family: _claims([claim for claim in claims if claim["family"] == family]) for family in families}
    judged = [claim for claim in claims if claim["target"]]
    seconds: dict[str, int] = results["seconds"]
    verdicts = ["| claims | met | of | measured in |", "|---|---|---|---|"]
    for family in seconds:
        of_family = [claim["met"] for claim in judged if claim["family"] == family]
        verdicts.append(f"| {family} | {sum(of_family)} | {len(of_family)} | {seconds[family]} s |")
    met, minutes = sum(claim["met"] for claim in judged), sum(seconds.values()) / 60
    verdicts.append(f"| all | {met} | {len(judged)} | {minutes:.0f} minutes |")
    profiles = "\n\n".join(_profile(profile) for profile in results["profiles"])
    return {"machine": _machine(results["machine"]), "verdicts": "\n".join(verdicts), "profiles": profiles, **found}


def grid(claims: list[Values]) -> str:
    """What stands between the markers of the grid: a line for type and sizes, a column for experts and modalities.

    Args:
        claims: The lines of the file of ``make bench-full``.
    """
    names = ("ours / limit", "plain loop / ours", "DeepSpeed / ours")
    lines: dict[str, dict[str, dict[str, float]]] = {}
    for claim in claims:
        *sizes, top_k, shares = claim["setting"].split(", ")
        cells = lines.setdefault(", ".join(sizes), {})
        cells.setdefault(f"{top_k}, {shares}", {})[claim["name"]] = claim["ratio"]
    columns = list(dict.fromkeys(column for cells in lines.values() for column in cells))
    table = [f"| setting | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for line, cells in lines.items():
        found = [[f"{cells[column][name]:.2f}" for name in names] if column in cells else [] for column in columns]
        table.append(f"| {line} | {' | '.join(' · '.join(ratios) for ratios in found)} |")
    for name in names[1:]:
        ratios = [claim["ratio"] for claim in claims if claim["name"] == name]
        slower = sum(ratio < 1 for ratio in ratios)
        table += ["", f"{name}: geometric mean {geometric_mean(ratios):.2f}, below 1 in {slower} of {len(ratios)}."]
    return "\n".join(table)


def compression(results: Values) -> dict[str, str]:
    """What stands between the markers of the page about compression.

    Args:
        results: ``runs`` and ``truncation`` by name, as they were found.
    """
    runs = ["| | wall clock | CPU | peak memory | read from the disk | result | load |", "|---" * 7 + "|"]
    for name, each in results.get("runs", {}).items():
        size = f"{each['result_gb']:.2f} GB" if "result_gb" in each else ""
        figures = f"{_minutes(each['wall_s'])} | {_minutes(each['cpu_s'])} | {each['peak_gib']:.2f} GiB"
        runs.append(f"| `{name}` | {figures} | {each['disk_read_gb']:.1f} GB | {size} | {each['load']:.0f} |")
    titles = "matrix | ours | SVD | SVD / ours | over the optimum | certified | in"
    truncated = [f"| {titles} |", "|---" * 7 + "|"]
    for name, each in results.get("truncation", {}).items():
        svd = f"{each['svd_cpu_s']:.1f} s | {each['svd_over_ours']:.1f}" if "svd_cpu_s" in each else " | "
        errors = f"{each['excess']:.1e} | {each['certified']:.1e} | {each['precision']}"
        truncated.append(f"| {name} | {each['cpu_s']:.2f} s | {svd} | {errors} |")
    return {"runs": "\n".join(runs), "truncation": "\n".join(truncated)}


def filled(text: str, contents: dict[str, str]) -> str:
    """The page with new contents between its markers ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: The page has no place for a section.
    """
    for name, content in contents.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, also_found, after = rest.partition(end)
        if not (found and also_found):
            raise ValueError(f"no place for {name!r}; put {begin.strip()} and {end.strip()} where it belongs")
        text = before + begin + content + "\n" + end + after
    return text


def measured() -> dict[Path, dict[str, str]]:
    """Pages, and what stands between all markers of each, from the files of results."""
    results, of_compression = (json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, COMPRESSION))
    of_grid = [json.loads(line) for line in GRID.read_text(encoding="utf-8").splitlines()]
    return {
        DOCS / "performance.md": {**sections(results), "grid": grid(of_grid)},
        DOCS / "compression.md": compression(of_compression),
    }


def write() -> None:
    """Brings the pages up to the results."""
    for path, contents in measured().items():
        path.write_text(filled(path.read_text(encoding="utf-8"), contents), encoding="utf-8")


def _machine(machine: Values) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items())])


def _claims(claims: list[Values]) -> str:
    """A line for each setting, a column for each claim about it."""
    names = list(dict.fromkeys(claim["name"] for claim in claims))
    lines = [f"| setting | ours | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for setting in dict.fromkeys(claim["setting"] for claim in claims):
        of_setting = {claim["name"]: claim for claim in claims if claim["setting"] == setting}
        cells = [_ratio(of_setting[name]) if name in of_setting else "" for name in names]
        first = next((claim for claim in of_setting.values() if "ours" in claim["name"]), None)
        ours = f"{_number(first['ours'])} {first['unit']}" if first else ""
        lines.append(f"| {setting} | {ours} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(claim: Values) -> str:
    low, high = claim["spread"]
    figures = f"{claim['ratio']:.3g}" + (f" ({low:.3g} to {high:.3g})" if low != high else "")
    if not claim["target"]:
        return figures
    return f"{figures}; {claim['target']} met" if claim["met"] else f"**{figures}; {claim['target']} missed**"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


def _profile(profile: Values) -> str:
    lines = [f"| {profile['name']}, {profile['setting']} | share of the time |", "|---|---|"]
    lines += [f"| {part} | {share:.1%} |" for part, share in profile["shares"].items() if share >= 5e-4]
    return "\n".join(lines)


if __name__ == "__main__":
    write()
