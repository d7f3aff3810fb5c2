"""Puts measured claims into the page about performance: tables between markers, the words around them stay."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "latest.json"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
Values = dict[str, Any]


def sections(results: Values) -> dict[str, str]:
    """What stands between the markers of each name.

    Args:
        results: ``machine``, ``claims`` and ``profiles``, as ``run.py`` writes them.
    """
    claims: list[Values] = results["claims"]
    families = dict.fromkeys(claim["family"] for claim in claims)
    found = {family: _claims([claim for claim in claims if claim["family"] == family]) for family in families}
    judged = [claim for claim in claims if claim["target"]]
    verdicts = ["| claims | met | of |", "|---|---|---|"]
    for family in families:
        of_family = [claim["met"] for claim in judged if claim["family"] == family]
        verdicts.append(f"| {family} | {sum(of_family)} | {len(of_family)} |")
    profiles = "\n\n".join(_profile(profile) for profile in results["profiles"])
    return {"machine": _machine(results["machine"]), "verdicts": "\n".join(verdicts), "profiles": profiles, **found}


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
            raise ValueError(f"{PAGE}: no place for {name!r}; put {begin.strip()} and {end.strip()} where it belongs")
        text = before + begin + content + "\n" + end + after
    return text


def write() -> None:
    """Brings the page up to the results."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), sections(results)), encoding="utf-8")


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


def _profile(profile: Values) -> str:
    lines = [f"| {profile['name']}, {profile['setting']} | share of the time |", "|---|---|"]
    lines += [f"| {part} | {share:.1%} |" for part, share in profile["shares"].items() if share >= 5e-4]
    return "\n".join(lines)


if __name__ == "__main__":
    write()
