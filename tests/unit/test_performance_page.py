"""The pages of the docs say what was measured, and the claims say what they say."""

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
page = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "page.py")))
CLAIM = {
    "family": "speed",
    "name": "peer / ours",
    "setting": "small",
    "ours": 0.5,
    "peer": 1.0,
    "unit": "s",
    "ratio": 2.0,
    "spread": [1.9, 2.1],
    "target": ">= 3",
    "met": False,
}
MARKERS = "intro\n<!-- {0} -->\nold\n<!-- /{0} -->\noutro\n"


def test_the_pages_hold_what_was_measured():
    for path, contents in page.measured().items():
        text = path.read_text(encoding="utf-8")
        assert page.filled(text, contents) == text, "run `python benchmarks/page.py`"


def test_every_family_was_measured_and_none_else():
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    run = (BENCHMARKS / "run.py").read_text(encoding="utf-8")
    families = re.findall(r'^    "(\w+)",$', run, flags=re.MULTILINE)
    titles = {
        re.search(r'^FAMILY = "(.*)"$', (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
        for name in families
    }
    assert {value["family"] for value in results["claims"] + results["profiles"]} == titles
    assert results["seconds"].keys() == titles


def test_every_verdict_follows_from_its_ratio():
    for claim in json.loads(page.RESULTS.read_text(encoding="utf-8"))["claims"]:
        if not claim["target"]:
            assert claim["met"] is None
            continue
        sign, bound = claim["target"].split()
        assert claim["met"] == (claim["ratio"] <= float(bound) if sign == "<=" else claim["ratio"] >= float(bound))


def test_a_claim_is_a_cell_of_its_setting_and_a_missed_target_stands_out():
    other = CLAIM | {"name": "limit / ours", "ratio": 0.9, "spread": [0.9, 0.9], "target": "", "met": None}
    results = {"machine": {"CPU": "abacus"}, "claims": [CLAIM, other], "profiles": [], "seconds": {"speed": 90}}
    contents = page.sections(results)
    assert contents["speed"].splitlines()[-1] == "| small | 0.5 s | **2 (1.9 to 2.1); >= 3 missed** | 0.9 |"
    assert contents["machine"].endswith("| CPU | abacus |")
    assert contents["verdicts"].endswith("| speed | 0 | 1 | 90 s |\n| all | 0 | 1 | 2 minutes |")


def test_the_grid_has_a_line_for_sizes_and_counts_where_a_peer_is_faster():
    names = {"ours / limit": 1.5, "plain loop / ours": 4.0, "DeepSpeed / ours": 0.5}
    first = [CLAIM | {"setting": "fp32, d 8, T 9, K 1, mixed", "name": name, "ratio": names[name]} for name in names]
    second = [each | {"setting": "fp32, d 8, T 9, K 2, mixed", "ratio": 1.0} for each in first]
    assert page.grid(first + second).splitlines() == [
        "| setting | K 1, mixed | K 2, mixed |",
        "|---|---|---|",
        "| fp32, d 8, T 9 | 1.50 · 4.00 · 0.50 | 1.00 · 1.00 · 1.00 |",
        "",
        "plain loop / ours: geometric mean 2.00, below 1 in 0 of 2.",
        "",
        "DeepSpeed / ours: geometric mean 0.71, below 1 in 1 of 2.",
    ]


def test_words_around_the_markers_stay():
    text = page.filled(MARKERS.format("speed"), {"speed": "new"})
    assert text == "intro\n<!-- speed -->\nnew\n<!-- /speed -->\noutro\n"


def test_a_page_without_a_place_for_a_section_says_so():
    with pytest.raises(ValueError, match="no place for 'speed'"):
        page.filled(MARKERS.format("other"), {"speed": "new"})
