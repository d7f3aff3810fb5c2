"""The page of grouped shards: the account of their places, samples with all their tiles; and either kind by URL."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ringmoe.cli.main import VERBS
from ringmoe.data.build import build
from ringmoe.data.places import PlaceManifest
from ringmoe.data.plan import BuildConfig
from ringmoe.errors import ShardError
from ringmoe.raster.tiling import TilingConfig
from ringmoe.report.inspect import render
from ringmoe.testing.http_server import FolderServer
from tests.fixtures.places import blacken, write_archive, write_member
from tests.unit.data.conftest import damage

from .test_inspect import Page

CONFIG = BuildConfig(tiling=TilingConfig(tile=16, stride=8, holdout=0.25), grouped=True, min_members=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Places of two kinds, one of them partly black, and one whose scenes are broken but for one."""
    folder = tmp_path_factory.mktemp("places")
    write_archive(folder / "in")
    blacken(folder / "in/b/3.tif", slice(0, 24))
    for key in ("ms", "opt"):
        write_member(folder / f"in/d/{key}.tif", key, east=800000.0)
    damage(folder / "in/d/opt.tif")
    return build([folder / "in"], folder / "out", replace(CONFIG, min_members=2)).manifest.root


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    page, faults = render(PlaceManifest.open(root))
    assert faults == []
    return page


def test_the_account_adds_up_to_the_manifest(root: Path, text: str):
    manifest, page = PlaceManifest.open(root), Page(text)
    places = manifest.grouped.places
    assert [place.kind for place in places] == ["ms, opt, sar_l1", "3 x ms", "ms"]
    cells = [cell for cell in page.having("data-modality", "data-count") if cell["data-modality"] != "all"]
    assert sum(int(cell["data-count"]) for cell in cells) == sum(place.candidates for place in places)
    kept = {cell["data-modality"]: int(cell["data-count"]) for cell in cells if "data-kept" in cell}
    assert kept == {place.kind: place.kept for place in places}
    for place in places:
        assert f"{place.name}: {place.kept} of {place.candidates} windows kept; " in text
    assert "21 tiles: black_border of ms.2021-03-03" in text
    assert [each["data-code"] for each in page.having("data-code")] == ["broken", "alone"]


def test_samples_are_shown_with_all_their_tiles(root: Path, text: str):
    manifest = PlaceManifest.open(root)
    shown = {each["data-samples"]: int(each["data-total"]) for each in Page(text).having("data-samples")}
    assert shown == {split: entry.num_samples for split, entry in manifest.grouped.splits.items()}
    captions = [each["title"] for each in Page(text).having("src", "title")]
    for name in ("ms", "opt", "sar_l1", "ms.2021-04-03"):
        assert any(f": {name}\n" in caption for caption in captions)
    assert 24 < text.count('<div class="strip">') <= 18 + 12 < sum(shown.values())


def test_places_are_on_the_map(text: str):
    figures = Page(text).having("data-map")
    assert figures[0]["data-count"] == "3"
    assert "footprints of places" in text
    assert "Where the places lie" in text


def test_every_modality_has_its_histograms(text: str):
    for key, sides in (("ms", "16 x 16"), ("opt", "32 x 32"), ("sar_l1", "16 x 16")):
        assert f'<section id="{key}">' in text
        assert f"Tiles of {sides} pixels." in text
    assert text.count('aria-label="histogram"') == 4  # complex ones have one of their power, too


def test_damage_is_named_and_leaves_the_rest(root: Path, tmp_path: Path):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    with (copy / "places/val-000000.tar").open("r+b") as file:
        file.truncate(1000)
    page, (fault,) = render(PlaceManifest.open(copy))
    assert "val-000000.tar has 1,000 bytes" in fault
    assert fault in page
    assert '<div class="strip">' in page
    (copy / "places/footprints.npy").write_bytes(b"")
    with pytest.raises(ShardError, match=r"places/footprints\.npy is not the file that was written"):
        render(PlaceManifest.open(copy))


def test_the_command_draws_what_lies_at_a_url(root: Path, text: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with FolderServer(root) as server:
        VERBS["shards inspect"].run("shards inspect", [server.url])
    assert (tmp_path / "inspect.html").read_text(encoding="utf-8") == text
    printed = capsys.readouterr().out
    assert "inspect.html (" in printed
    assert "requests" in printed
