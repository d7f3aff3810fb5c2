"""The corpus of broken scenes and shards: each gets a clear error or a counted quarantine, none a crash or silent loss.

What is broken, and what must become of it, stands in ``tests/fixtures/corpus``; here it is put through the commands.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ringmoe.data.manifest import Manifest
from tests.fixtures.corpus import commands, damage, images, page, products, run, shards
from tests.fixtures.corpus.case import Case
from tests.fixtures.corpus.run import Outcome, run_all
from tests.fixtures.corpus.tiff import image, noise, vrt

pytestmark = pytest.mark.xdist_group("bad input")  # the cases are run once, all by one worker

SCENES = [case for room in (images, products) for cases in room.CASES.values() for case in cases]
SHARDS = [case for cases in shards.CASES.values() for case in cases]
COMMANDS = [case for cases in commands.CASES.values() for case in cases]


def by_name(case: Case) -> str:
    return case.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """A folder that can be removed, whatever cases took from it."""
    folder = tmp_path_factory.mktemp("bad")
    yield folder
    run.readable(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    """Every broken scene in a folder of its own, and a good one."""
    image(folder / "archive" / run.GOOD / "good.tif", noise("uint16", 4), names=("B", "G", "R", "NIR"))
    run.make_all(SCENES, folder / "archive")
    return folder / "archive"


@pytest.fixture(scope="module")
def good(archive: Path) -> str:
    """The shard of the good scene, built with nothing else."""
    assert run.build(archive / run.GOOD, archive.parent / "good")[0] == 0
    return run.good_shard(archive.parent / "good")


@pytest.fixture(scope="module")
def scenes(archive: Path) -> dict[str, Outcome]:
    return run_all(SCENES, run.examine_scene, archive.parent)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Shards with nothing wrong, and broken copies of them beside."""
    root = damage.whole(folder)
    damage.copies(root, SHARDS, folder / "spoiled")
    return root


@pytest.fixture(scope="module")
def spoiled(whole: Path) -> dict[str, Outcome]:
    return run_all(SHARDS, run.examine_shards, whole.parent)


@pytest.fixture(scope="module")
def pixels(whole: Path) -> str:
    """What is read of shards with nothing wrong."""
    shutil.copytree(whole, whole.parent / "spoiled" / "nothing")
    outcome = Outcome()
    run.read_all(whole.parent / "spoiled" / "nothing", outcome)
    assert (outcome.stage, outcome.message) == ("", "")
    return outcome.pixels


@pytest.fixture(scope="module")
def refusing(folder: Path) -> dict[str, Outcome]:
    return run_all(COMMANDS, run.examine_command, folder)


@pytest.mark.parametrize("case", SCENES, ids=by_name)
def test_a_broken_scene_is_told_and_harms_no_other(case: Case, scenes: dict[str, Outcome], good: str):
    assert list(run.complaints(case, scenes[case.name], good)) == []


@pytest.mark.parametrize("case", SHARDS, ids=by_name)
def test_broken_shards_are_told(case: Case, spoiled: dict[str, Outcome], pixels: str):
    assert list(run.complaints_of_shards(case, spoiled[case.name], pixels)) == []


@pytest.mark.parametrize("case", COMMANDS, ids=by_name)
def test_commands_refuse_in_words(case: Case, refusing: dict[str, Outcome]):
    assert list(run.complaints_of_command(case, refusing[case.name])) == []


def test_one_build_over_everything_accounts_for_every_file(archive: Path, good: str, scenes: dict[str, Outcome]):
    """By the command line, in a process that may read no more than its user, with a terminal of ASCII."""
    out = archive.parent / "everything"
    folders = sorted(archive.iterdir())
    words = said_by("shards", "build", *folders, out, *run.TILING, "--tiles-per-shard", "4")
    assert run.good_shard(out) == good
    manifest = Manifest.open(out)
    told = run.account_of(out)
    assert [message for *_, message in told if str(archive.parent) in message] == []
    assert max(Counter(name for _, name, _, _ in told).values()) == 1
    alone = [(kind, name, code) for case in SCENES for kind, name, code, _ in scenes[case.name].account]
    expected = Counter(entry for entry in alone if entry[0] != "passed over")
    expected["scene", f"{run.GOOD}/good.tif", ""] += 1
    assert Counter((kind, name, code) for kind, name, code, _ in told) == expected
    kept = sum(outcome.kept - 4 for outcome in scenes.values()) + 4
    assert sum(entry.num_kept for entry in manifest.modalities.values()) == kept
    dropped = sum((Counter(outcome.dropped) for outcome in scenes.values()), Counter())
    assert sum((Counter(entry.dropped) for entry in manifest.modalities.values()), Counter()) == dropped
    numbers = Counter(kind for kind, *_ in told)
    for category in ("refused", "quarantined"):
        assert f"{numbers[category]} files {category}" in words
    assert f"{numbers['refused']} files refused" in said_by("shards", "plan", archive, *run.TILING)


def said_by(*arguments: str | Path) -> str:
    """What a command says where it ends well; its terminal knows ASCII only."""
    code = (
        "from tests.fixtures.corpus.run import give_up_rights; give_up_rights(); "
        "from ringmoe.cli.main import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert b"Traceback" not in ended.stderr
    return ended.stdout.decode("ascii")


@pytest.mark.parametrize("case", [case for cases in images.CASES.values() for case in cases], ids=by_name)
def test_no_file_is_lost_or_told_twice(case: Case, archive: Path, scenes: dict[str, Outcome]):
    root = archive / case.name
    files = [Path(parent, name) for parent, _, names in os.walk(root) for name in names]
    if case.name == "a-folder-without-permission":  # then it is the folder that is told
        files = [root / "sub"]
    told = [name for _, name, _, _ in scenes[case.name].account]
    assert sorted(told) == sorted(path.relative_to(archive).as_posix() for path in files)


def test_nothing_is_fetched_that_a_file_points_to(tmp_path: Path):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"/vsicurl/http://127.0.0.1:{server.server_port}/a.tif"
        for beside in ("ovr", "msk", "aux.xml"):
            for suffix, driver in (("tif", "GTiff"), ("png", "PNG"), ("jpg", "JPEG"), ("jp2", "JP2OpenJPEG")):
                path = image(tmp_path / "in" / beside / f"s.{suffix}", driver=driver)
                vrt(path.with_name(f"{path.name}.{beside}"), url)
        for number, key in enumerate(("OVERVIEW_FILE", "SUBDATASET_1_NAME", "PROXY_OVERVIEW_REQUEST")):
            path = image(tmp_path / "in" / f"{number}.tif")
            domain = f'<Metadata domain="{key.rpartition("_")[0]}S"><MDI key="{key}">{url}</MDI></Metadata>'
            path.with_name(f"{path.name}.aux.xml").write_text(f"<PAMDataset>{domain}</PAMDataset>")
        vrt(tmp_path / "in" / "s.vrt", url)
        code, words = run.told("shards", "build", tmp_path / "in", tmp_path / "out", *run.TILING, "--modality", "opt")
        assert code == 0, words
        assert len(Manifest.open(tmp_path / "out").modalities["opt"].scenes) >= 12
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_nothing_was_made_that_an_input_asked_for(folder: Path, scenes: Any, spoiled: Any, refusing: Any):
    assert list(folder.rglob(commands.NEVER)) == []
    assert [place for place in (Path(), Path("/tmp")) if (place / commands.NEVER).exists()] == []


def test_there_are_enough_of_all_kinds():
    kinds = Counter(case.outcome.partition(" ")[0] for case in SCENES + SHARDS + COMMANDS)
    assert kinds.total() >= 60
    assert min(kinds[kind] for kind in ("refused", "quarantined", "dropped", "used", "error")) >= 5


def test_the_page_says_what_the_corpus_says():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run `python -m tests.fixtures.corpus.page`"


def test_a_case_that_dies_or_hangs_fails_alone(folder: Path):
    found = run_all(COMMANDS[:4], misbehave, folder)
    faults = [found[case.name].fault for case in COMMANDS[:4]]
    assert "exit code -11" in faults[0]
    assert "MemoryError" in faults[1]
    assert faults[2:] == ["", ""]


def misbehave(case: Case, folder: Path) -> Outcome:
    """Dies in the first case, takes too much memory in the second, and does well in others."""
    if case.name == COMMANDS[0].name:
        os.kill(os.getpid(), 11)
    if case.name == COMMANDS[1].name:
        bytearray(64 << 30)
    return Outcome()
