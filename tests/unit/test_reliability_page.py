"""The page about reliability says what was seen of the kills."""

import json

from tests.reliability import page, soak_page
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


def test_the_page_holds_what_the_soak_saw():
    record = json.loads(page.SOAK.read_text(encoding="utf-8")) if page.SOAK.exists() else None
    text = page.PAGE.read_text(encoding="utf-8")
    assert soak_page.filled(text, record) == text, "run `make reliability`"
    if record is None:
        return
    assert (page.PAGE.parent / soak_page.PICTURE).exists()
    assert max(record["growth"]) < 0.01
    assert len(record["kills"]) >= 10
    assert all(all(kill["codes"]) for kill in record["kills"])


def test_what_the_soak_saw_is_told_and_drawn(tmp_path):
    kill = {"step": 149, "place": "backward", "rank": 1, "victims": [0], "codes": [-9, 1], "seconds": 0.2}
    samples = [[step, 700.0, 710.0] for step in range(10, 171, 10)]
    record = {"steps": 170, "seconds": [179, 100], "growth": [0.0025, -0.004], "kills": [kill], "resumed": [100]}
    (tmp_path / "images").mkdir()
    (tmp_path / "page.md").write_text(f"before {soak_page.BEGIN}{soak_page.END} after")
    record |= {"whole": samples, "lives": [samples[:14], samples[10:]]}
    soak_page.write(record, tmp_path / "soak.json", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "changed by +0.25% and -0.40%; the most they had was 700 MiB and 710 MiB" in text
    assert "| 149 | `backward`, rank 1 | rank 0 | -9 and 1 | 0.2 s | 100 |" in text
    assert soak_page.filled(text, json.loads((tmp_path / "soak.json").read_text())) == text
    assert "<svg" in (tmp_path / "images/soak.svg").read_text()
