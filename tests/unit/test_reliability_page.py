"""The page about reliability says what was seen of the kills."""

import json

from tests.reliability import page
from tests.reliability.matrix import KILLS

RECORDS = json.loads(page.RESULTS.read_text(encoding="utf-8"))


def test_the_page_holds_what_was_seen():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, RECORDS) == text, "run `make reliability`"


def test_there_are_kills_enough_and_none_else_was_seen():
    names = [kill.name for kill in KILLS]
    seen = [record["name"] for record in RECORDS]
    assert len(names) == len(set(names)) >= 40
    assert seen == [name for name in names if name in seen]


def test_nobody_ended_well_or_late():
    assert all(all(record["codes"]) for record in RECORDS)
    assert max(record["seconds"] for record in RECORDS) < 30
