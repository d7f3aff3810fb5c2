"""The page of a folder of shards: its numbers are the manifest's, and it needs nothing but itself."""

import base64
import functools
import http.server
import io
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringmoe import modality as registry
from ringmoe.cli.console import guarded
from ringmoe.cli.inspect import ShardsInspect, run
from ringmoe.data.manifest import Manifest
from ringmoe.errors import ShardError
from ringmoe.raster.quality import REASONS
from ringmoe.raster.statistics import Statistics
from ringmoe.raster.write import write_geotiff
from ringmoe.report.axes import round_steps
from ringmoe.report.inspect import histograms, maps, render
from ringmoe.report.inspect.page import NUM_REASON_COLOURS
from ringmoe.report.inspect.sheets import spread
from tests.fixtures.shards import build_shards

HOSTILE = "a<script>alert('x')</script>.tif"


class Page(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def having(self, *names: str) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.tags if set(names) <= attributes.keys()]


def _write(path, pixels, **options):
    write_geotiff(
        path,
        pixels,
        crs=None,
        transform=None,
        descriptions=("R", "G", "B"),
        tags={"RINGMOE_MODALITY": "opt", "RINGMOE_UNITS": "dn"},
        **options,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with everything that a page can show: black parts, a scene without a place, a broken one, no scenes."""
    folder = tmp_path_factory.mktemp("inspect")
    noise = np.random.default_rng(0).integers(1, 200, (3, 128, 128)).astype("uint8")
    half = noise.copy()
    half[:, :, 64:] = 0
    _write(folder / "scenes/half.tif", half)
    _write(folder / "scenes/broken.tif", noise)
    content = bytearray((folder / "scenes/broken.tif").read_bytes())
    content[len(content) // 2 :][:200] = b""
    content[len(content) // 2 : len(content) // 2 + 200] = b"\xff" * 200
    (folder / "scenes/broken.tif").write_bytes(content)
    (folder / "scenes" / HOSTILE.replace("/", "_")).write_bytes(b"no raster at all")
    return build_shards(folder, tile=32, side=128)


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    page, faults = render(Manifest.open(root))
    assert faults == []
    return page


def test_the_account_adds_up_to_the_manifest(root, text):
    manifest, page = Manifest.open(root), Page(text)
    counts: dict[str, int] = {}
    for cell in page.having("data-modality", "data-count"):
        counts[cell["data-modality"]] = counts.get(cell["data-modality"], 0) + int(cell["data-count"])
    candidates = {cell["data-modality"]: int(cell["data-candidates"]) for cell in page.having("data-candidates")}
    assert candidates == counts
    assert candidates.pop("all") == sum(entry.candidates for entry in manifest.modalities.values())
    assert candidates == {key: entry.candidates for key, entry in manifest.modalities.items()}
    for key, entry in manifest.modalities.items():
        cells = [cell for cell in page.having("data-modality", "data-count") if cell["data-modality"] == key]
        dropped = {cell["data-reason"]: int(cell["data-count"]) for cell in cells if "data-reason" in cell}
        assert {reason: num for reason, num in dropped.items() if num} == entry.dropped
        kept = {cell["data-kept"]: int(cell["data-count"]) for cell in cells if "data-kept" in cell}
        assert kept == {split: samples.num_samples for split, samples in entry.splits.items()}


def test_every_rule_has_a_colour_of_its_own_in_both_themes(text):
    assert len(REASONS) <= NUM_REASON_COLOURS
    light, dark = text.split("prefers-color-scheme: dark")
    for theme in (light, dark):
        colours = dict(re.findall(r"--(c\d+): (#\w{6});", theme))
        assert set(colours) == {f"c{number}" for number in range(NUM_REASON_COLOURS)}
        assert len(set(colours.values())) == NUM_REASON_COLOURS


def test_rules_are_told_in_words(text):
    for reason in ("black_border", "split_border"):
        assert f'{reason}<span class="soft">: {REASONS[reason]}</span>' in text


def test_what_was_left_out_is_named(root, text):
    manifest, page = Manifest.open(root), Page(text)
    assert [scene.name for scene in manifest.quarantined] == ["scenes/broken.tif"]
    assert len(manifest.refused) == 1
    left_out = page.having("data-code", "data-count")
    assert sum(int(each["data-count"]) for each in left_out) == 2
    assert "scenes/broken.tif" in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_every_sheet_has_its_pictures(root, text):
    manifest, page = Manifest.open(root), Page(text)
    sheets: dict[str, tuple[int, list[str]]] = {}
    for tag, attributes in page.tags:
        if "data-sheet" in attributes:
            current = attributes["data-sheet"]
            sheets[current] = int(attributes["data-total"]), []
        elif tag == "img":
            sheets[current][1].append(attributes["src"])
    expected = {}
    for key, entry in manifest.modalities.items():
        expected |= {f"{key}/{split}": samples.num_samples for split, samples in entry.splits.items()}
        expected |= {f"{key}/{reason}": num for reason, num in entry.dropped.items()}
    assert {name: total for name, (total, _) in sheets.items()} == expected
    assert "opt/black_border" in expected
    for total, pictures in sheets.values():
        assert len(pictures) >= min(total, 12)
        for uri in pictures:
            drawn = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
            assert drawn.size == (32, 32)
    kept = [np.asarray(_image(uri)) for uri in sheets["opt/train"][1]]
    assert np.std([picture.mean() for picture in kept]) > 1  # not one grey for all
    black = [np.asarray(_image(uri))[..., :3].min(axis=(0, 2)) for uri in sheets["opt/black_border"][1]]
    assert all(columns[-1] < 12 for columns in black)


def _image(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_every_scene_is_on_the_map_or_listed(root, text):
    manifest, page = Manifest.open(root), Page(text)
    (overview,) = [each for each in page.having("data-map") if each["data-map"] == "all"]
    unplaced = {each["data-unplaced"]: int(each["data-count"]) for each in page.having("data-unplaced")}
    assert unplaced == {"opt": 2}
    num_scenes = sum(len(entry.scenes) for entry in manifest.modalities.values())
    assert int(overview["data-count"]) + 2 == num_scenes == 6


def test_it_is_one_page_that_asks_for_nothing(text):
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed"}
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_the_same_shards_give_the_same_page(root, text):
    assert render(Manifest.open(root))[0] == text


def test_a_rule_that_nobody_heard_of_is_shown(root, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"black_border"', '"sea_monster"'))
    page = Page(render(Manifest.open(copy))[0])
    assert {"opt/sea_monster", "opt/split_border"} <= {each["data-sheet"] for each in page.having("data-sheet")}
    assert any(each["data-reason"] == "sea_monster" for each in page.having("data-reason"))


def test_the_command_writes_the_page_whole_or_says_why_not(root, tmp_path, capsys):
    run(ShardsInspect(folder=root, page=tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").endswith("</html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert "open it in a browser" in capsys.readouterr().out
    with pytest.raises(ShardError, match=r"cannot be written: .*Choose another place: --page"):
        run(ShardsInspect(folder=root, page=tmp_path / "nowhere" / "page.html"))
    assert guarded(lambda: run(ShardsInspect(folder=tmp_path))) == 2
    assert "no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["opt/examples.npy", "opt/footprints.npy", "ms/statistics.json"])
def test_damage_is_named(root, tmp_path, name):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ShardError, match=rf"{name} is not the file that was written"):
        render(Manifest.open(copy))


def test_tiles_that_cannot_be_read_are_named_on_their_sheet_and_by_the_command(root, tmp_path, capsys):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    (copy / "ms/train-000000.tar").unlink()
    run(ShardsInspect(folder=copy))
    assert "not drawn: " in capsys.readouterr().out
    text = (copy / "inspect.html").read_text(encoding="utf-8")
    assert "ms/train-000000.tar is missing" in text
    assert len([each for each in Page(text).having("data-sheet") if each["data-sheet"] == "ms/train"]) == 1


def test_samples_are_spread_over_the_scenes():
    scenes = np.repeat(np.arange(40, dtype="<u4"), [10_000, *[3] * 38, 1])
    chosen = spread(scenes, 41, 20)
    assert len({int(scenes[position]) for position in chosen}) == 20
    assert spread(scenes[:5], 1, 20) == [0, 1, 2, 3, 4]
    assert spread(scenes[:10_000], 1, 2) == [2500, 7500]
    assert max(spread(scenes[10_000:], 40, 12)) < len(scenes) - 10_000


def test_histograms_are_those_of_the_pixels():
    statistics = Statistics(1, "float32")
    values = np.random.default_rng(0).exponential(size=(1, 100, 100)).astype("float32")
    statistics.update(values)
    centres, counts = statistics.histogram(0)
    assert counts.sum() == values.size
    assert float(centres @ counts) / values.size == pytest.approx(float(values.mean()), rel=0.004)
    assert (np.diff(centres) > 0).all()


def test_histograms_of_integers_give_each_bar_the_same_number_of_them(root):
    """A uniform distribution is drawn flat, whatever the range is."""
    manifest = Manifest.open(root)
    found = manifest.modalities["opt"].groups[0]
    for highest in (50, 199, 255):
        statistics = Statistics(3, "uint8")
        statistics.update(np.tile(np.arange(highest + 1, dtype="uint8"), (3, 8, 1)))
        group = type(found.group)(**{**vars(found.group), "channels": statistics.summary()})
        shown = histograms.view(registry.OPT, type(found)(group=group, tiles=found.tiles), statistics)
        heights = [float(y) for y in re.findall(r"V([\d.]+)H", shown.panels[0].curves[0].path)]
        assert len(set(heights[1:-2])) == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-180, 180), (0.0031, 0.0042), (7, 65535), (-31.5, 12)])
def test_axes_have_a_few_round_marks(low, high):
    marks = round_steps(low, high, 6)
    assert 3 <= len(marks) <= 12
    assert min(marks) >= low - 1e-9
    assert max(marks) <= high + 1e-9


def test_maps_zoom_in_where_scenes_lie_together():
    def square(lon, lat, size=0.1):
        return np.array([(lon, lat), (lon + size, lat), (lon + size, lat - size), (lon, lat - size)])

    places = [(4 + i / 10, 52.0) for i in range(5)] + [(-75.0, 40.0), (-74.9, 40.0)]
    drawn = maps.draw([maps.Footprint(0, f"{place}", square(*place)) for place in places])
    assert [each.total for each in drawn] == [7, 5, 2]
    for each in drawn:
        assert 0.39 < each.height / each.width < 0.8
        assert len(each.shapes) == each.total
        for shape in each.shapes:
            xs, ys = zip(*(map(float, point.split(",")) for point in shape.points.split()), strict=True)
            assert min(*xs, *ys) >= 0
            assert max(xs) <= each.width
            assert max(ys) <= each.height
    # a scene across the antimeridian is small
    across = np.array([(179.9, 0.1), (-179.9, 0.1), (-179.9, -0.1), (179.9, -0.1)])
    (only,) = maps.draw([maps.Footprint(0, "fiji", across)])
    assert only.shapes[0].dot is None


def test_a_browser_opens_it_without_a_complaint_or_a_request(root, text, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome is installed")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # requests to other places are refused by the page's own policy, and the console says so
        done = subprocess.run(
            [
                *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
                *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
                *(
                    f"--user-data-dir={tmp_path / 'profile'}",
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                ),
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/page.html",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert Page(done.stdout).having("data-candidates") == Page(text).having("data-candidates")
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert asked == ["/page.html"]
