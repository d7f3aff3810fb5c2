"""The page about reliability says what was seen of the kills."""

import json

from tests.reliability import page
from tests.reliability.matrix import KILLS

RECORDS = json.loads(page.RESULTS.read_text(encoding="utf-8"))


def test_the_page_holds_what_was_seen():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, RECORDS) == text, "run `make reliability`"


def test_a_kill_that_fails_is_no_longer_seen(tmp_path, monkeypatch, capsys):
    failed, fine, left_out = RECORDS[:3]
    for name, content in (("RESULTS", json.dumps([failed, left_out])), ("PAGE", page.BEGIN + page.END)):
        monkeypatch.setattr(page, name, tmp_path / name)
        (tmp_path / name).write_text(content)
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "000.json").write_text(json.dumps({"name": failed["name"], "failed": True}))
    (folder / "001.json").write_text(json.dumps(fine))
    page.main(folder)
    assert json.loads((tmp_path / "RESULTS").read_text()) == [fine, left_out]
    assert "2 of the" in (tmp_path / "PAGE").read_text()
    assert f"failed: {failed['name']}" in capsys.readouterr().out


def test_there_are_kills_enough_and_none_else_was_seen():
    names = [kill.name for kill in KILLS]
    seen = [record["name"] for record in RECORDS]
    assert len(names) == len(set(names)) >= 40
    assert seen == [name for name in names if name in seen]


def test_nobody_ended_well_or_late():
    assert all(all(record["codes"]) for record in RECORDS)
    assert max(record["seconds"] for record in RECORDS) < 30
